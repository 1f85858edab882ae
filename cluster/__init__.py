"""Takes a run to machines: Ray Train around ofmu's trainer, jobs on a cluster, and a look at what would stop them.

The names are loaded on first use, so that ``import cluster`` starts in no time and does not import Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from cluster.doctor.checks import Check
    from cluster.doctor.doctor import examine_cluster, examine_job_server, examine_machine
    from cluster.jobs.server import Job, JobServer
    from cluster.jobs.working_dir import Package, plan_package, refuse_missing_files
    from cluster.train.trainer import train as unlearn

__all__ = [
    "Check",
    "ClusterConfig",
    "Job",
    "JobServer",
    "Package",
    "examine_cluster",
    "examine_job_server",
    "examine_machine",
    "plan_package",
    "refuse_missing_files",
    "unlearn",
]

_HOMES = {
    "Check": ("cluster.doctor.checks", "Check"),
    "ClusterConfig": ("cluster.config", "ClusterConfig"),
    "Job": ("cluster.jobs.server", "Job"),
    "JobServer": ("cluster.jobs.server", "JobServer"),
    "Package": ("cluster.jobs.working_dir", "Package"),
    "examine_cluster": ("cluster.doctor.doctor", "examine_cluster"),
    "examine_job_server": ("cluster.doctor.doctor", "examine_job_server"),
    "examine_machine": ("cluster.doctor.doctor", "examine_machine"),
    "plan_package": ("cluster.jobs.working_dir", "plan_package"),
    "refuse_missing_files": ("cluster.jobs.working_dir", "refuse_missing_files"),
    # `cluster.train.trainer` is the module, so the function bears the name that it has on one machine
    "unlearn": ("cluster.train.trainer", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cluster' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
