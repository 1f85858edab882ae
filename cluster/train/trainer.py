"""Ray Train around ofmu's trainer: worker groups, restarts, checkpoints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.config import ClusterConfig
from cluster.session import ray_session, trials_at_a_time
from cluster.train.checkpointers import RayCheckpointer, UriCheckpointer
from ofmu import errors
from ofmu.errors import OfmuError, PrunedError, RunError, StorageError
from ofmu.io.files import write_json
from ofmu.run_config import UnlearnConfig

if TYPE_CHECKING:
    from cluster.storage.mirror import Mirror
    from ofmu.checkpointing import ProgressCallback
    from ofmu.early_stopping import RoundCallback
    from ofmu.tasks.preparation import Prepared

_FAILURE = "failure.json"


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
    """Run one whole unlearning run, through Ray Train, and return its metrics.

    With ``num_workers`` 0 the loop runs in this process and checkpoints lie in ``trial_dir``; otherwise in a
    worker group that Ray Train restarts from its last checkpoint when a worker dies. ``trial_dir`` must be seen
    by every node. A run that was cut off continues; a finished one returns at once. ``round_callback`` may end the
    run early, see :func:`ofmu.trainer.unlearn`; a worker group gets a copy of it in every worker. With a ``mirror`` of
    ``trial_dir``, which needs ``num_workers`` 0, checkpoints are kept at its URI.

    Workers need a Ray cluster that this process has joined; see :func:`train`.

    Raises:
        ClusterError: the cluster is smaller than the run asks for.
        OfmuError: whatever the user can mend; a failure that another try would repeat is not retried.
        PrunedError: the round callback ended the run.
        RuntimeError: the worker group crashed more than ``max_failures`` times.
    """
    # workers start in Ray's session directory, where relative paths lead nowhere
    trial_dir = Path(trial_dir).absolute()
    if cluster.num_workers == 0:
        _train_here(config, cluster, trial_dir, prepared, callback, round_callback, mirror)
    else:
        _train_group(config, cluster, trial_dir, prepared, round_callback)
    return read_metrics(trial_dir)


def train(
    config: UnlearnConfig,
    output_dir: str | Path,
    cluster: ClusterConfig | None = None,
    *,
    prepared: Prepared | None = None,
    listener: ProgressCallback | None = None,
) -> dict[str, float | None]:
    """Join or start a Ray cluster where workers are asked for, prepare target and reference if need be, and run.

    Raises:
        ClusterError: the cluster is unreachable, or smaller than the run asks for.
        OfmuError: see :func:`run_trial` and :func:`ofmu.preparer.prepare`.
    """
    cluster = cluster or ClusterConfig()
    with ray_session(cluster) if cluster.num_workers else nullcontext():
        if cluster.num_workers:
            # said before models are trained for it
            trials_at_a_time(cluster, 1)
        if prepared is None:
            from ofmu.preparer import prepare

            prepared = prepare(config)
        return run_trial(config, cluster, Path(output_dir), prepared, callback=listener)


def _train_here(
    config: UnlearnConfig,
    cluster: ClusterConfig,
    trial_dir: Path,
    prepared: Prepared,
    listener: ProgressCallback | None,
    judge: RoundCallback | None,
    mirror: Mirror | None,
) -> None:
    """Ray Train's local mode: the loop is a closure in this process, so errors and the listener pass through."""

    def loop() -> None:
        from ofmu.io.library_logging import silence_libraries
        from ofmu.trainer import unlearn

        silence_libraries()

        def heard(record: dict[str, Any]) -> None:
            ray.train.report(record)
            if listener is not None:
                listener(record)

        unlearn(
            config,
            trial_dir,
            prepared=prepared,
            callback=heard,
            make_checkpointer=partial(UriCheckpointer, mirror=mirror, listener=heard) if mirror is not None else None,
            checkpoint_every=cluster.checkpoint_every,
            round_callback=judge,
        )

    with tempfile.TemporaryDirectory(prefix="ofmu_train_") as scratch:
        TorchTrainer(
            loop, scaling_config=ScalingConfig(num_workers=0), run_config=RunConfig(storage_path=scratch)
        ).fit()


def _train_group(
    config: UnlearnConfig, cluster: ClusterConfig, trial_dir: Path, prepared: Prepared, judge: RoundCallback | None
) -> None:
    trials_at_a_time(cluster, 1)
    (trial_dir / _FAILURE).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "trial_dir": str(trial_dir),
            "prepared": prepared,
            "checkpoint_every": cluster.checkpoint_every,
            "judge": judge,
        },
        **worker_layout(cluster),
        run_config=RunConfig(
            # the same name in a new driver makes Ray Train go on from the run's last checkpoint
            name="train",
            storage_path=str(trial_dir / "ray_train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise cause_of(error) from error
    _raise_recorded_failure(trial_dir)
    if judge is not None:
        from ofmu.early_stopping import raise_if_pruned

        raise_if_pruned(trial_dir)


def worker_layout(cluster: ClusterConfig) -> dict[str, Any]:
    """Return the arguments of a TorchTrainer that say how many workers of what size talk over what."""
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return {
        "torch_config": TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        "scaling_config": ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
    }


def _worker_loop(settings: dict[str, Any]) -> None:
    """One rank's run. An error that all ranks meet alike ends the run normally, so Ray Train does not repeat it."""
    from ofmu.io.library_logging import silence_libraries
    from ofmu.trainer import unlearn

    silence_libraries()
    trial_dir = Path(settings["trial_dir"])
    try:
        unlearn(
            UnlearnConfig.model_validate(settings["config"]),
            trial_dir,
            prepared=settings["prepared"],
            make_checkpointer=RayCheckpointer,
            checkpoint_every=settings["checkpoint_every"],
            round_callback=settings["judge"],
        )
    except PrunedError:
        # its account lies in the trial's directory, and to Ray Train the run has ended well
        return
    except StorageError:
        # one rank's disk is not the others': the group has to be stopped
        raise
    except OfmuError as error:
        if ray.train.get_context().get_world_rank() == 0:
            write_json(trial_dir / _FAILURE, {"kind": type(error).__name__, "sentence": str(error)})


def cause_of(error: ray.train.TrainingFailedError) -> Exception:
    """Return the worker's own error where it is one of ours, else a one-line account of the failure."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        found: BaseException | None = failure
        while found is not None:
            if isinstance(found, OfmuError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    first = str(error).strip().splitlines()
    return RuntimeError(f"the worker group failed: {first[0] if first else type(error).__name__}")


def _raise_recorded_failure(trial_dir: Path) -> None:
    path = trial_dir / _FAILURE
    if path.is_file():
        failure = json.loads(path.read_text(encoding="utf-8"))
        kind: Callable[[str], OfmuError] = getattr(errors, failure["kind"], OfmuError)
        raise kind(failure["sentence"])


def read_metrics(trial_dir: Path) -> dict[str, float | None]:
    """Return the metrics of a finished run.

    Raises:
        RunError: there are none.
    """
    path = trial_dir / "metrics.json"
    if not path.is_file():
        raise RunError(f"The run in {trial_dir} ended without metrics.json: is the directory shared by all nodes?")
    metrics: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics
