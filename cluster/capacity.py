"""Whether one trial fits the memory of the machine on which it will run, before a cluster is started."""

from __future__ import annotations

import os

from cluster.config import ClusterConfig
from ofmu.plan.check import check_fit
from ofmu.run_config import UnlearnConfig


def check_trial_fits(config: UnlearnConfig, cluster: ClusterConfig, *, keeps_round: bool = False) -> None:
    """Check that one trial fits this machine. The machines of a cluster elsewhere are unknown, so nothing is checked.

    Args:
        config: the trial.
        cluster: the worker layout.
        keeps_round: whether the trial may keep the weights of an earlier round.

    Raises:
        MemoryLimitError: the trial does not fit. The message names the smallest change that makes it fit.
    """
    if (cluster.address or os.environ.get("RAY_ADDRESS") or "local") not in ("local", ""):
        return
    reserved = cluster.gpus_per_worker
    if reserved > 0:
        check_fit(
            config, ranks=max(cluster.num_workers, 1), on_gpu=None, share=min(1.0, reserved), keeps_round=keeps_round
        )
    elif cluster.num_workers > 0:
        # Workers that reserve no GPU see none.
        check_fit(config, ranks=cluster.num_workers, on_gpu=False, keeps_round=keeps_round)
    else:
        check_fit(config, keeps_round=keeps_round)
