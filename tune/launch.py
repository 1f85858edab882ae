"""Trials on Ray Tune: one experiment of warm trial processes, fed by whatever hands out specifications."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from ray import tune as ray_tune

from ofmu.errors import StorageError
from tune.progress import StopWithSearcher, TuneWatcher
from tune.trial import Executor, UnlearningTrial

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.reference import Prepared
    from tune.config import SearchConfig
    from tune.judge import Judging
    from tune.progress import TrialSource


def run_trials(
    source: TrialSource,
    config: SearchConfig,
    *,
    executor: Executor | None,
    prepared: Prepared | None,
    concurrent: int,
    storage: Path,
    notify: Callable[[], None],
    judging: Judging | None = None,
) -> None:
    """Run what ``source`` hands out, ``concurrent`` trials at a time, until it has nothing more.

    Needs a Ray session. Tune's own files go to ``storage``; ``notify`` is called when a trial starts.
    With ``judging``, those that ``source`` marks as ``judged`` may be stopped early.

    Raises:
        StorageError: the source was stopped by a write that the disk refused.
    """
    # Otherwise Tune keeps one trial pending at a time, and the first ones start one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrent)
    cluster = config.cluster
    trainable = ray_tune.with_parameters(
        UnlearningTrial, executor=executor, cluster=cluster, prepared=prepared, judging=judging
    )
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory([_bundle(cluster)])),
        tune_config=ray_tune.TuneConfig(
            search_alg=source,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=_directory_name,
        ),
        run_config=ray_tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(storage),
            verbose=0,
            stop=StopWithSearcher(source),
            callbacks=[TuneWatcher(source, notify)],
            failure_config=ray_tune.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        source.stopped_by = StorageError(f"The search cannot store its state: {error}")
    if source.stopped_by is not None:
        raise source.stopped_by


def _bundle(cluster: ClusterConfig) -> dict[str, float]:
    """Return what a trial's own process reserves; a worker group reserves the rest for itself."""
    if cluster.num_workers > 0:
        # A bundle must not be empty, and a share of a CPU would keep the last worker from being placed.
        return {"memory": 1}
    return {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}


def _directory_name(trial: Any) -> str:
    return f"{trial.config['number']:05d}_{trial.trial_id}"
