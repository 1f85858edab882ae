"""Trials on Ray Tune: one experiment of warm trial processes, fed by whatever hands out specifications."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune as ray_tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter

from cluster.session import free_slots
from ofmu.errors import StorageError
from tune.callbacks.base import StopWithSearcher, TuneWatcher
from tune.execution.trainable import Executor, UnlearningTrial

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.tasks.preparation import Prepared
    from tune.callbacks.base import TrialSource
    from tune.config import SearchConfig
    from tune.early_stopping.service import Judging

_LOOK_SECONDS = 1.0
"""How often the size of the cluster is looked at."""


def run_trials(
    source: TrialSource,
    config: SearchConfig,
    *,
    executor: Executor | None,
    prepared: Prepared | None,
    storage: Path,
    notify: Callable[[], None],
    judging: Judging | None = None,
) -> None:
    """Run what ``source`` hands out until it has nothing more, as many trials at a time as the cluster holds.

    Nodes that join or leave change that number; ``search.max_concurrent_trials`` bounds it. Needs a Ray session. Tune's own
    files go to ``storage``; ``notify`` is called when a trial starts. With ``judging``, those that ``source`` marks
    as ``judged`` may be stopped early.

    Raises:
        StorageError: the source was stopped by a write that the disk refused.
    """
    # Otherwise Tune keeps one trial pending at a time, and they start one after the other; the limiter is the bound.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1000000"
    cluster = config.cluster
    limiter = ConcurrencyLimiter(source, max_concurrent_trials=1)
    trainable = ray_tune.with_parameters(
        UnlearningTrial, executor=executor, cluster=cluster, prepared=prepared, judging=judging
    )
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory([_bundle(cluster)])),
        tune_config=ray_tune.TuneConfig(
            search_alg=limiter,
            scheduler=_Unhurried(),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=_directory_name,
        ),
        run_config=ray_tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(storage),
            verbose=0,
            stop=StopWithSearcher(source),
            callbacks=[
                TuneWatcher(source, notify),
                _FollowCluster(limiter, cluster, config.search.max_concurrent_trials),
            ],
            failure_config=ray_tune.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except OSError as error:
        source.stopped_by = StorageError(f"The search cannot store its state: {error}")
    if source.stopped_by is not None:
        raise source.stopped_by


class _Unhurried(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Lets every trial wait for the process that is starting for it.

    Tune's own order gives a process that has become free to the first pending trial, and ends the one that was starting
    for it; where trials take less time than a process takes to start, no node that joins, and no slot that lost its
    process, would ever be used. A trial that is new takes a free process all the same.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave the order to Tune's queue."""


class _FollowCluster(ray_tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Keeps as many trials at work as the cluster holds now: Tune itself would stay at the number of the start."""

    def __init__(self, limiter: ConcurrencyLimiter, cluster: ClusterConfig, wanted: int | None) -> None:
        self._limiter, self._cluster, self._wanted = limiter, cluster, wanted
        self._looked = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks for a restore of its own, which is never used."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the cluster now and then, before new trials are asked for."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        # a cluster that has lost all its nodes is waited for, with one trial pending
        self._limiter.max_concurrent_trials = max(free_slots(self._cluster, self._wanted), 1)


def _bundle(cluster: ClusterConfig) -> dict[str, float]:
    """Return what a trial's own process reserves; a worker group reserves the rest for itself."""
    if cluster.num_workers > 0:
        # A bundle must not be empty, and a share of a CPU would keep the last worker from being placed.
        return {"memory": 1}
    return {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}


def _directory_name(trial: Any) -> str:
    return f"{trial.config['number']:05d}_{trial.trial_id}"
