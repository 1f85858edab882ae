"""Whether one trial can run on the machine on which it will run, before a cluster is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cluster.config import ClusterConfig
from ofmu.engine.device import check_device
from ofmu.plan.check import check_fit
from ofmu.plan.decision import Decision, decide_engine, decide_run
from ofmu.run_config import UnlearnConfig


def check_trial_fits(config: UnlearnConfig, cluster: ClusterConfig, *, keeps_round: bool = False) -> None:
    """Check that one trial fits this machine. The machines of a cluster elsewhere are unknown, so nothing is checked.

    Args:
        config: the trial.
        cluster: the worker layout.
        keeps_round: whether the trial may keep the weights of an earlier round.

    Raises:
        ConfigError: as :func:`check_trial_engine` raises it.
        MemoryLimitError: the trial does not fit. The message names the smallest change that makes it fit.
    """
    check_trial_engine(config, cluster)
    if not _is_elsewhere(cluster):
        check_fit(config, keeps_round=keeps_round, **_place(cluster))


def check_trial_engine(config: UnlearnConfig, cluster: ClusterConfig) -> None:
    """Check that the engine works on the ranks of a trial, and that the device of a trial is on this machine.

    A cluster elsewhere may have the device. Ray itself refuses a trial whose workers reserve more GPUs than there are.

    Raises:
        ConfigError: a setting is for one process only; or the config names a GPU, and no GPU is visible.
    """
    config.engine.check_ranks(max(cluster.num_workers, 1))
    if not _is_elsewhere(cluster) and cluster.reserved_gpus == 0:
        check_device(config.engine)


def decide_trial(config: UnlearnConfig, cluster: ClusterConfig, *, keeps_round: bool = False) -> Decision:
    """Decide the settings of a trial's engine that are ``auto``, from the memory of this machine.

    The machines of a cluster elsewhere are unknown, so a trial there gets the defaults.

    Args:
        config: the trial.
        cluster: the worker layout.
        keeps_round: whether the trial may keep the weights of an earlier round.

    Raises:
        ConfigError: as :func:`check_trial_engine` raises it.
        OfmuError: rows or model, which the plan reads, are wrong.
    """
    check_trial_engine(config, cluster)
    if _is_elsewhere(cluster):
        return decide_engine(config, unknown="the machines of the cluster are unknown")
    return decide_engine(config, keeps_round=keeps_round, **_place(cluster))


def decide_single_run(config: UnlearnConfig, cluster: ClusterConfig, stored: Mapping[str, Any] | None) -> Decision:
    """Decide the settings of a single run's engine that are ``auto``; collective on the ranks of a launcher.

    Args:
        config: the run.
        cluster: the worker layout.
        stored: the stored config of a run that continues, which keeps what was decided. None: a new run.

    Raises:
        OfmuError: rows or model, which the plan reads, are wrong.
    """
    return decide_run(config, stored, (lambda: decide_trial(config, cluster)) if cluster.num_workers else None)


def _is_elsewhere(cluster: ClusterConfig) -> bool:
    return (cluster.address or os.environ.get("RAY_ADDRESS") or "local") not in ("local", "")


def _place(cluster: ClusterConfig) -> dict[str, Any]:
    """Return where a trial's ranks run, as arguments of :func:`ofmu.plan.check.check_fit`."""
    if cluster.reserved_gpus > 0:
        share = min(1.0, cluster.reserved_gpus)
        return {"ranks": max(cluster.num_workers, 1), "on_gpu": None, "share": share}
    if cluster.num_workers == 0:
        return {}
    return {"ranks": cluster.num_workers, "on_gpu": None if cluster.sees_gpu else False}
