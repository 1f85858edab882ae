"""Worker groups: a Ray Train run whose processes take one unlearning run after the other.

The processes, their imports, the process group and DeepSpeed's world stay. Every run makes its own model, optimizer,
data and random state, so a run in an old group gives the same numbers as a run in a new one.
"""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.local import is_loopback_cluster
from cluster.storage.credentials import found_credentials
from cluster.storage.uri import join_uri, storage_at
from cluster.train.files import RAY_TRAIN
from cluster.train.rendezvous import FileTorchConfig
from cluster.train.task_queue import BroadcastQueue, RankOutcome
from cluster.train.worker import EvaluationTask, PreparationTask, WorkerTask, worker_loop
from ofmu.errors import OfmuError, PrunedError, RunError, error_named
from ofmu.io.cache import cache_root
from ofmu.io.files import storage_errors
from ofmu.io.text import counted
from ofmu.run_files import RunFiles
from ofmu.tasks.events import event_from_json

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from cluster.storage.mirror import Mirror
    from ofmu.early_stopping import RoundCallback
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.events import PreparationCallback
    from ofmu.tasks.preparation import Prepared

_POLL_SECONDS = 1.0
"""How soon the end of a group is noticed. An outcome is noticed at once."""
_CLOSE_SECONDS = 60.0

Task = WorkerTask | PreparationTask | EvaluationTask


@contextmanager
def short_lived_pool(config: UnlearnConfig) -> Iterator[tuple[WorkerGroupPool, Path]]:
    """Yield a pool, and a folder beside the cache for Ray Train's own files. Both are gone at the end.

    Raises:
        StorageError: the folder cannot be made.
    """
    storage = cache_root(config.cache_dir) / f".workers-{uuid.uuid4().hex[:12]}"
    with storage_errors(storage):
        storage.mkdir(parents=True)
    pool = WorkerGroupPool()
    try:
        yield pool, storage
    finally:
        pool.close()
        shutil.rmtree(storage, ignore_errors=True)


class WorkerGroupPool:
    """Runs one unlearning run after the other in a worker group, and keeps the group between runs.

    Another model, engine section (ZeRO stage, precision, threads) or worker layout closes the group and starts a new
    one. A crash starts a new group too, and the run continues from its last checkpoint. If the cluster has too few
    free resources, a new group waits for them, since a node may just have been lost. A pool that has run nothing can be
    pickled.
    """

    def __init__(self) -> None:
        self._group: WorkerGroup | None = None

    def __call__(
        self,
        config: UnlearnConfig,
        cluster: ClusterConfig,
        trial_dir: Path,
        prepared: Prepared,
        *,
        round_callback: RoundCallback | None = None,
        mirror: Mirror | None = None,
    ) -> dict[str, float | None]:
        """Run the config's method and return the metrics. A complete run returns at once.

        Args:
            config: the run.
            cluster: the worker layout; ``num_workers`` must be at least 1.
            trial_dir: the run's directory, which all nodes must see. An interrupted run continues from its last
                checkpoint there.
            prepared: the target and the reference.
            round_callback: may end the run; see :func:`ofmu.trainer.unlearn`. Every rank gets its own copy.
            mirror: the mirror of a ``trial_dir`` at a URI. Every rank then has its own local folder, and checkpoints
                are at the URI.

        Raises:
            OfmuError: an error that the user can fix. If all ranks met the error, the run is not retried and the group
                stays.
            PrunedError: the round callback ended the run.
            RunError: the group crashed more than ``cluster.max_failures`` times on this run.
            StorageError: ``trial_dir`` cannot be written.
            ValueError: ``cluster.num_workers`` is 0.
        """
        if cluster.num_workers == 0:
            raise ValueError("a worker group needs cluster.num_workers of at least 1")
        # Workers start in Ray's session directory, where a relative path names another place.
        trial_dir = Path(trial_dir).absolute()
        # Ray Train would report a directory that cannot be made as a crash.
        with storage_errors(trial_dir):
            trial_dir.mkdir(parents=True, exist_ok=True)
        task = WorkerTask(
            config=config.model_dump(mode="json"),
            trial_dir=trial_dir,
            prepared=prepared,
            checkpoint_every=cluster.checkpoint_every,
            round_callback=round_callback,
            mirror=mirror,
            credentials=found_credentials(),
        )
        # Ray Train needs storage that all nodes see. All nodes see the run's directory.
        storage = str(trial_dir) if mirror is None else mirror.uri
        outcome = self._run(task, _group_key(config, cluster, prepared.target), cluster, storage)
        if mirror is not None:
            mirror.pull_top_level()
        _raise_error_of(outcome, trial_dir)
        return read_metrics(trial_dir)

    def prepare(
        self, config: UnlearnConfig, cluster: ClusterConfig, storage: Path, callback: PreparationCallback
    ) -> None:
        """Run the preparation on the ranks of a group, so that the cache has every part.

        Args:
            config: the run, whose cache all nodes see.
            cluster: the worker layout.
            storage: a folder for Ray Train's own files, which all nodes see.
            callback: called with each event of rank 0.

        Raises:
            OfmuError: as :func:`ofmu.preparer.prepare` raises it.
            RunError: the group crashed more than ``cluster.max_failures`` times.
        """
        task = PreparationTask(config=config.model_dump(mode="json"))
        key = _group_key(config, cluster, None)
        _raise_own_error(self._run(task, key, cluster, str(storage), callback))

    def evaluate(
        self,
        model: str,
        config: UnlearnConfig,
        cluster: ClusterConfig,
        storage: Path,
        *,
        reference: str | None,
        output_dir: Path,
    ) -> None:
        """Evaluate a saved model on the ranks of a group, and write the files of :func:`ofmu.evaluator.evaluate`.

        Args:
            model: the model.
            config: the run.
            cluster: the worker layout.
            storage: a folder for Ray Train's own files, which all nodes see.
            reference: a saved model or its scores, or None.
            output_dir: the folder for the files, which all nodes see.

        Raises:
            OfmuError: as :func:`ofmu.evaluator.evaluate` raises it.
            RunError: the group crashed more than ``cluster.max_failures`` times.
        """
        task = EvaluationTask(
            config=config.model_dump(mode="json"), model=model, reference=reference, output_dir=output_dir
        )
        _raise_own_error(self._run(task, _group_key(config, cluster, None), cluster, str(storage)))

    def close(self) -> None:
        """Close the worker group, if there is one, and free its resources."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _run(
        self,
        task: Task,
        key: str,
        cluster: ClusterConfig,
        storage: str,
        callback: PreparationCallback | None = None,
    ) -> RankOutcome:
        """Return the outcome of the task. Start a new group after each crash, up to ``max_failures`` crashes."""
        failures = 0
        while True:
            group = self._group_for(key, cluster, storage)
            try:
                return group.run(task, callback)
            except GroupCrashedError as error:
                self.close()
                if isinstance(error.__cause__, OfmuError):
                    raise error.__cause__ from error
                failures += 1
                if 0 <= cluster.max_failures < failures:
                    raise RunError(
                        f"The worker group crashed {counted(failures, 'time')} on this run ({error}): if "
                        "memory ran out, lower engine.micro_batch_size or raise cluster.num_workers"
                    ) from error
            except BaseException:
                # Such as Ctrl-C: the ranks still work on the task, and an orderly end would wait for them.
                group.kill()
                self._group = None
                raise

    def _group_for(self, key: str, cluster: ClusterConfig, storage: str) -> WorkerGroup:
        if self._group is not None and (self._group.key != key or not self._group.is_alive):
            self.close()
        if self._group is None:
            self._group = WorkerGroup(key, cluster, storage)
        return self._group


def _group_key(config: UnlearnConfig, cluster: ClusterConfig, target: Path | None) -> str:
    """Return what the tasks of one group have in common."""
    return json.dumps(
        [
            config.model.model_dump(mode="json"),
            config.engine.model_dump(mode="json"),
            str(target),
            [cluster.num_workers, cluster.cpus_per_worker, cluster.reserved_gpus],
        ]
    )


class GroupCrashedError(Exception):
    """A worker group ended before its task. The cause is the error that ended the group."""


class WorkerGroup:
    """A Ray Train run in a thread of this process. Its ranks take tasks from a queue.

    This process owns the queue and the run, so both end with this process.
    """

    def __init__(self, key: str, cluster: ClusterConfig, storage: str) -> None:
        self.key = key
        """What all runs of this group have in common."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(BroadcastQueue).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        self._queue = actor.remote(cluster.num_workers)
        self._failure: Exception | None = None
        settings = FileTorchConfig if is_loopback_cluster() else TorchConfig
        trainer = TorchTrainer(
            worker_loop,
            train_loop_config={"queue": self._queue},
            torch_config=settings(backend="nccl" if cluster.reserved_gpus else "gloo"),
            scaling_config=_scaling_config(cluster),
            run_config=_run_config(storage),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="worker group", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the group starts, works or waits for tasks. Ray Train may notice a crash only later."""
        return self._thread.is_alive()

    def run(self, task: Task, callback: PreparationCallback | None = None) -> RankOutcome:
        """Run the task on every rank. Return rank 0's outcome.

        Args:
            task: the task.
            callback: called with each event of a preparation.

        Raises:
            GroupCrashedError: a rank was lost, or met an error that the other ranks did not meet.
        """
        try:
            number = ray.get(self._queue.submit.remote([ray.put(task)]))
            result = self._queue.result.remote(number)
            while not ray.wait([result], timeout=_POLL_SECONDS)[0]:
                self._hand_on_events(callback)
                if not self._thread.is_alive():
                    cause = self._failure or RuntimeError("the worker group ended by itself")
                    raise GroupCrashedError(str(cause)) from cause
            self._hand_on_events(callback)
            outcome: RankOutcome = ray.get(result)
            return outcome
        except ray.exceptions.RayActorError as error:
            raise GroupCrashedError("the group's task queue was lost") from error

    def _hand_on_events(self, callback: PreparationCallback | None) -> None:
        if callback is not None:
            for event in ray.get(self._queue.take_events.remote()):
                callback(event_from_json(event))

    def close(self) -> None:
        """End the ranks after their current task, and wait until their resources are free. Kill them after a minute."""
        if self._thread.is_alive():
            self._queue.close.remote()
            self._thread.join(_CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the queue. Every rank exits as soon as its connection to the queue is lost, even in a task."""
        ray.kill(self._queue)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            self._failure = _cause_of(error)
        except Exception as error:  # run() notices that the thread has ended, and raises this error
            self._failure = error


def read_metrics(trial_dir: Path) -> dict[str, float | None]:
    """Return the metrics of a complete run.

    Raises:
        RunError: there are no metrics.
    """
    metrics = RunFiles(trial_dir).read_metrics()
    if metrics is None:
        raise RunError(f"The run in {trial_dir} ended without metrics: use a directory that all nodes share")
    return metrics


def _raise_error_of(outcome: RankOutcome, trial_dir: Path) -> None:
    """Raise the error that ended the run on all ranks, if there is one."""
    if outcome.pruned:
        record = RunFiles(trial_dir).read_pruning_record()
        if record is not None:
            raise PrunedError(record)
    _raise_own_error(outcome)


def _raise_own_error(outcome: RankOutcome) -> None:
    if outcome.error is not None:
        raise error_named(outcome.error, outcome.message)


def _scaling_config(cluster: ClusterConfig) -> ScalingConfig:
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.reserved_gpus:
        resources["GPU"] = cluster.reserved_gpus
    return ScalingConfig(
        num_workers=cluster.num_workers, use_gpu=cluster.reserved_gpus > 0, resources_per_worker=resources
    )


def _run_config(storage: str) -> Any:
    system, path = storage_at(join_uri(storage, RAY_TRAIN))
    return RunConfig(
        name=f"group-{uuid.uuid4().hex[:12]}",
        # Ray Train may store a URI with its credentials, so it gets the file system instead.
        storage_filesystem=system,
        storage_path=path,
        # A crash counts against the run in which it happened, so Ray Train must not restart the group by itself.
        failure_config=FailureConfig(max_failures=0),
    )


def _cause_of(error: ray.train.TrainingFailedError) -> Exception:
    """Return the OfmuError that a rank raised. Without one, return one line about the failure."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        found: BaseException | None = failure
        while found is not None:
            if isinstance(found, OfmuError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    first = str(error).strip().splitlines()
    return RuntimeError(f"the worker group failed: {first[0] if first else type(error).__name__}")
