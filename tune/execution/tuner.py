"""Run trials on Ray Tune: one experiment whose warm processes take trial after trial from a trial source."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune as ray_tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter

from cluster.session import free_slots
from cluster.storage.credentials import CREDENTIALS, found_credentials
from ofmu.errors import StorageError
from tune.execution.trainable import Executor, UnlearningTrial
from tune.execution.tune_callbacks import StorageErrorStopper, TrialErrorCallback

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.tasks.preparation import Prepared
    from tune.checkpoint_selection.callback import CheckpointSelection
    from tune.config import SearchConfig
    from tune.early_stopping.callback import EarlyStopping
    from tune.execution.trial_source import TrialSource

_POLL_SECONDS = 1.0
"""How often the size of the cluster is read."""


def run_trials(
    source: TrialSource[Any],
    config: SearchConfig,
    *,
    executor: Executor | None,
    prepared: Prepared | None,
    storage: Path,
    on_trial_start: Callable[[], None],
    early_stopping: EarlyStopping | CheckpointSelection | None = None,
) -> None:
    """Run the trials of ``source`` until it has no more. A Ray session must be open.

    The number of concurrent trials follows the cluster: it changes when nodes join or leave. The upper limit is
    ``search.max_concurrent_trials``.

    Args:
        source: gives the specs and stores the ends.
        config: the sections ``cluster`` and ``search``.
        executor: runs one trial.
        prepared: the target and the reference; None if the executor needs neither.
        storage: the directory of Ray Tune's own files.
        on_trial_start: called when a trial starts.
        early_stopping: if given, trials whose spec asks for early stopping may be stopped early. Checkpoint selection
            also selects the rounds for which they stand.

    Raises:
        StorageError: a write failed, and the source has stopped.
    """
    # Tune's default of one pending trial would serialise starts. ConcurrencyLimiter bounds them instead.
    _keep_credentials_out_of_runtime_environments()
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1000000"
    cluster = config.cluster
    limiter = ConcurrencyLimiter(source, max_concurrent=1)
    trainable = ray_tune.with_parameters(
        UnlearningTrial,
        executor=executor,
        cluster=cluster,
        prepared=prepared,
        early_stopping=early_stopping,
        credentials=found_credentials(),
    )
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory([_bundle(cluster)])),
        tune_config=ray_tune.TuneConfig(
            search_alg=limiter,
            scheduler=_KeepPendingActors(),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=_directory_name,
        ),
        run_config=ray_tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(storage),
            verbose=0,
            stop=StorageErrorStopper(source),
            callbacks=[
                TrialErrorCallback(source, on_trial_start, cluster.max_failures),
                _ElasticConcurrency(limiter, cluster, config.search.max_concurrent_trials),
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


def _keep_credentials_out_of_runtime_environments() -> None:
    """Keep Ray Tune from copying AWS's credentials into the trials' environments, which Ray logs in clear."""
    class_cache.ENV_VARS_TO_PROPAGATE = class_cache.ENV_VARS_TO_PROPAGATE - set(CREDENTIALS)


class _KeepPendingActors(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Let every trial wait for the process that starts for this trial.

    By default Ray Tune gives a free process to the first pending trial, and ends the process that was starting for that
    trial. If trials are shorter than the start of a process, then a node that joins, or a slot that lost its process,
    would never be used. A new trial still takes a free process.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose no trial, so that the order stays with Ray Tune's queue."""


class _ElasticConcurrency(ray_tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Run as many trials as the cluster holds now. Ray Tune itself would keep the number of the start."""

    def __init__(self, limiter: ConcurrencyLimiter, cluster: ClusterConfig, limit: int | None) -> None:
        self._limiter, self._cluster, self._limit = limiter, cluster, limit
        self._read_at = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles its callbacks for its own restore, which is never used."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Read the cluster's size from time to time, before new trials are suggested."""
        if time.monotonic() - self._read_at < _POLL_SECONDS:
            return
        self._read_at = time.monotonic()
        # A cluster that has lost all its nodes may get them back. One trial stays pending until then.
        self._limiter.max_concurrent = max(free_slots(self._cluster, self._limit), 1)


def _bundle(cluster: ClusterConfig) -> dict[str, float]:
    """Return what a trial's own process reserves. A worker group reserves its own resources."""
    if cluster.num_workers > 0:
        # A bundle must not be empty, and a fraction of a CPU would keep the last worker from being placed.
        return {"memory": 1}
    return {"CPU": cluster.cpus_per_worker, "GPU": cluster.reserved_gpus}


def _directory_name(trial: Any) -> str:
    return f"{trial.config['number']:05d}_{trial.trial_id}"
