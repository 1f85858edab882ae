"""Runs unlearning on a Ray cluster: worker groups of Ray Train, jobs, run directories at a URI, and the doctor.

The names are loaded on first use, so that ``import cluster`` is fast and does not import Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from cluster.doctor.checks import Check
    from cluster.doctor.doctor import examine_cluster, examine_job_server, examine_machine
    from cluster.jobs.server import Job, JobServer
    from cluster.jobs.working_dir import Package, check_missing_files, plan_package
    from cluster.train.trainer import train as unlearn

__all__ = [
    "Check",
    "ClusterConfig",
    "Job",
    "JobServer",
    "Package",
    "check_missing_files",
    "examine_cluster",
    "examine_job_server",
    "examine_machine",
    "plan_package",
    "unlearn",
]

_SOURCES = {
    "Check": ("cluster.doctor.checks", "Check"),
    "ClusterConfig": ("cluster.config", "ClusterConfig"),
    "Job": ("cluster.jobs.server", "Job"),
    "JobServer": ("cluster.jobs.server", "JobServer"),
    "Package": ("cluster.jobs.working_dir", "Package"),
    "check_missing_files": ("cluster.jobs.working_dir", "check_missing_files"),
    "examine_cluster": ("cluster.doctor.doctor", "examine_cluster"),
    "examine_job_server": ("cluster.doctor.doctor", "examine_job_server"),
    "examine_machine": ("cluster.doctor.doctor", "examine_machine"),
    "plan_package": ("cluster.jobs.working_dir", "plan_package"),
    # The function has the same name as the one of `ofmu`, which runs on one machine.
    "unlearn": ("cluster.train.trainer", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'cluster' has no attribute '{name}'")
    module, attribute = _SOURCES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
