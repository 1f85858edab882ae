"""The verb train: one unlearning run, in this process or in a worker group."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.capacity import check_trial_fits, decide_single_run
from cluster.config import ClusterConfig
from cluster.session import max_parallel_trials, ray_session
from cluster.storage.uri import check_storage
from cluster.train.checkpointers import UriCheckpointer
from cluster.train.files import RAY_TRAIN
from cluster.train.preparation import prepare
from cluster.train.worker_group import WorkerGroupPool, read_metrics
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.run_files import RUN_NAMES, RunFiles, check_output

if TYPE_CHECKING:
    from cluster.storage.mirror import Mirror
    from ofmu.checkpointing import ProgressCallback
    from ofmu.early_stopping import RoundCallback
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.events import PreparationCallback
    from ofmu.tasks.preparation import Prepared


def train(
    config: UnlearnConfig,
    output_dir: str | Path,
    cluster: ClusterConfig | None = None,
    *,
    prepared: Prepared | None = None,
    callback: ProgressCallback | None = None,
    prepare_callback: PreparationCallback | None = None,
) -> dict[str, float | None]:
    """Prepare the target and the reference, run the config's method, and return the metrics.

    With ``num_workers`` above 0, join or start a Ray cluster first. ``prepare_callback`` is that of
    :func:`cluster.train.preparation.prepare`. The other arguments are those of :func:`run_trial`.

    Raises:
        ClusterError: the cluster is unreachable, or smaller than the run needs.
        ConfigError: a setting of the engine is for one process only.
        RunError: ``output_dir`` holds files that no run made, or its name is not UTF-8.
        MemoryLimitError: the run needs more memory than this machine has, and there is no other machine.
        OfmuError: as :func:`run_trial` and :func:`cluster.train.preparation.prepare` raise it.
    """
    cluster, files = cluster or ClusterConfig(), RunFiles(Path(output_dir))
    check_output(output_dir, (*RUN_NAMES, RAY_TRAIN))
    config.engine.check_ranks(max(cluster.num_workers, 1))
    if cluster.num_workers:
        check_storage(output_dir)
    config = decide_single_run(config, cluster, files.read_config() if config.engine.undecided else None).config
    if prepared is None:
        check_trial_fits(config, cluster)
    with ray_session(cluster, config.engine.device) if cluster.num_workers else nullcontext(cluster) as cluster:
        if cluster.num_workers:
            # Fail before the expensive preparation if the cluster is too small.
            max_parallel_trials(cluster, 1)
        if prepared is None:
            prepared = prepare(config, cluster, prepare_callback)
        # Imported here: it imports transformers, and an error of the cluster must come first.
        from ofmu.content import check_content, content_of, read_content, write_content

        content = content_of(config)
        check_content(files.directory, read_content(files.directory), content)
        if not files.environment.exists():
            # Ray Train's folder is written before the run starts, and this file shows that the folder is ours.
            write_json(files.environment, environment())
        write_content(files.directory, content)
        return run_trial(config, cluster, Path(output_dir), prepared, callback=callback)


def run_trial(
    config: UnlearnConfig,
    cluster: ClusterConfig,
    trial_dir: Path,
    prepared: Prepared,
    *,
    callback: ProgressCallback | None = None,
    round_callback: RoundCallback | None = None,
    mirror: Mirror | None = None,
) -> dict[str, float | None]:
    """Run the config's method once and return the metrics. A complete run returns at once.

    With ``num_workers`` 0 the run is in this process. Otherwise the run has its own worker group, which needs a joined
    Ray cluster; :func:`train` joins one. An interrupted run continues from its last checkpoint. A run whose worker dies
    restarts from there up to ``cluster.max_failures`` times.

    Args:
        config: the run.
        cluster: the worker layout, and how often to write checkpoints.
        trial_dir: the run's directory, which all nodes must see.
        prepared: the target and the reference.
        callback: called with one record per round, if the run is in this process.
        round_callback: may end the run; see :func:`ofmu.trainer.unlearn`. Every rank gets its own copy.
        mirror: the mirror of a ``trial_dir`` at a URI. Checkpoints are then at the URI.

    Raises:
        ClusterError: the cluster is smaller than the run needs.
        OfmuError: an error that the user can fix. An error that all ranks meet is not retried.
        PrunedError: the round callback ended the run.
        RunError: the worker group crashed more than ``cluster.max_failures`` times.
    """
    if cluster.num_workers == 0:
        _run_locally(config, cluster, Path(trial_dir).absolute(), prepared, callback, round_callback, mirror)
        return read_metrics(trial_dir)
    max_parallel_trials(cluster, 1)
    pool = WorkerGroupPool()
    try:
        return pool(config, cluster, trial_dir, prepared, round_callback=round_callback, mirror=mirror)
    finally:
        pool.close()
        shutil.rmtree(Path(trial_dir) / RAY_TRAIN, ignore_errors=True)


def _run_locally(
    config: UnlearnConfig,
    cluster: ClusterConfig,
    trial_dir: Path,
    prepared: Prepared,
    callback: ProgressCallback | None,
    round_callback: RoundCallback | None,
    mirror: Mirror | None,
) -> None:
    """Run in Ray Train's local mode. The loop is a closure in this process, so errors and callbacks work as usual."""

    def loop() -> None:
        # Imported here: both import transformers, which takes seconds.
        from ofmu.io.library_logging import silence_libraries
        from ofmu.trainer import unlearn

        silence_libraries()

        def report(record: dict[str, Any]) -> None:
            ray.train.report(record)
            if callback is not None:
                callback(record)

        unlearn(
            config,
            trial_dir,
            prepared=prepared,
            callback=report,
            make_checkpointer=None if mirror is None else partial(UriCheckpointer, mirror=mirror, callback=report),
            checkpoint_every=cluster.checkpoint_every,
            round_callback=round_callback,
        )

    with tempfile.TemporaryDirectory(prefix="ofmu_train_") as scratch:
        TorchTrainer(
            loop, scaling_config=ScalingConfig(num_workers=0), run_config=RunConfig(storage_path=scratch)
        ).fit()
