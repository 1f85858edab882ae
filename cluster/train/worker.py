"""What each rank of a worker group runs."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from cluster.local import restore_umask
from cluster.storage.credentials import Credentials, set_credentials
from cluster.storage.mirror import Mirror
from cluster.train.checkpointers import UriCheckpointer
from cluster.train.task_queue import RankOutcome
from ofmu.engine.device import release_memory
from ofmu.errors import OfmuError, PrunedError, StorageError
from ofmu.io.ranks import LAUNCHER
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import CHECKPOINTS
from ofmu.tasks.events import event_to_json

if TYPE_CHECKING:
    from ofmu.early_stopping import RoundCallback
    from ofmu.tasks.preparation import Prepared

_RECONNECT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """One unlearning run for a worker group."""

    config: Mapping[str, Any]
    """JSON values of the :class:`ofmu.run_config.UnlearnConfig`. Each rank validates them, which imports plugins."""
    trial_dir: Path
    """The run's directory. All ranks must see the directory, unless there is a mirror."""
    prepared: Prepared
    checkpoint_every: int
    round_callback: RoundCallback | None
    """Every rank gets its own copy."""
    mirror: Mirror | None
    """Where the run's directory is at a URI."""
    credentials: Credentials
    """Credentials of the URI's storage."""


@dataclass(frozen=True, kw_only=True)
class PreparationTask:
    """The preparation of a run for a worker group. All ranks see the cache."""

    config: Mapping[str, Any]
    """JSON values of the :class:`ofmu.run_config.UnlearnConfig`."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """The evaluation of a saved model for a worker group. All ranks see the model, the reference and the folder."""

    config: Mapping[str, Any]
    """JSON values of the :class:`ofmu.run_config.UnlearnConfig`."""
    model: str
    reference: str | None
    output_dir: Path


def worker_loop(settings: Mapping[str, Any]) -> None:
    """Run tasks on this rank until the queue is closed. An error that only this rank meets ends the whole group."""
    # Imported here: the process that starts the group imports this module and does not need transformers.
    from ofmu.io.library_logging import silence_libraries

    os.environ[LAUNCHER] = "ray"
    silence_libraries()
    restore_umask()
    queue, rank, number = settings["queue"], ray.train.get_context().get_world_rank(), 0
    threading.Thread(target=_exit_with_queue, args=(queue,), name="queue watcher", daemon=True).start()
    while (taken := ray.get(queue.next.remote(number))) is not None:
        is_first = number == 0
        number, (reference,) = taken
        task = ray.get(reference)
        if isinstance(task, PreparationTask):
            emit = partial(queue.emit.remote, number) if rank == 0 else None
            outcome = _prepare(task, emit)
        elif isinstance(task, EvaluationTask):
            outcome = _evaluate(task)
        else:
            outcome = _run_task(task)
        _free_memory()
        if is_first:
            # Imports leave about 350,000 permanent objects. Scanning them after every task would take 0.2 s.
            gc.freeze()
        ray.get(queue.report.remote(number, rank, outcome))


def _exit_with_queue(queue: Any) -> None:
    """Exit the process if the queue is killed, even in the middle of a task. Return if the queue is closed."""
    while True:
        try:
            ray.get(queue.wait_closed.remote())
            return
        except ray.exceptions.ActorUnavailableError:
            # The connection was lost for a moment. The task must not fail for that.
            time.sleep(_RECONNECT_SECONDS)
        except ray.exceptions.RayActorError:
            os._exit(1)


def _run_task(task: WorkerTask) -> RankOutcome:
    """Run this rank's part of a task. An error that all ranks meet is an outcome, so that the group survives."""
    # Imported here: the process that starts the group imports this module and does not need transformers.
    from ofmu.trainer import unlearn

    set_credentials(task.credentials)
    config = UnlearnConfig.model_validate(task.config)
    mirror = None if task.mirror is None else _mirror_of_rank(task.mirror)
    _seed_global_generators(config.seed)
    try:
        unlearn(
            config,
            task.trial_dir if mirror is None else mirror.local,
            prepared=task.prepared,
            make_checkpointer=None if mirror is None else partial(UriCheckpointer, mirror=mirror),
            checkpoint_every=task.checkpoint_every,
            round_callback=task.round_callback,
        )
    except PrunedError:
        _upload(mirror)
        return RankOutcome(pruned=True)
    except StorageError:
        # The other ranks' disks may be in order. These ranks would wait for this one, so the group must end.
        raise
    except OfmuError as error:
        return RankOutcome(error=type(error).__name__, message=str(error))
    _upload(mirror)
    return RankOutcome()


def _prepare(task: PreparationTask, emit: Callable[[dict[str, Any]], Any] | None) -> RankOutcome:
    """Run this rank's part of a preparation. ``emit`` hands an event on to the process that waits."""
    # Imported here: the process that starts the group imports this module and does not need transformers.
    from ofmu.preparer import prepare

    config = UnlearnConfig.model_validate(task.config)
    _seed_global_generators(config.seed)
    return _outcome_of(
        lambda: prepare(config, callback=None if emit is None else lambda event: emit(event_to_json(event)))
    )


def _evaluate(task: EvaluationTask) -> RankOutcome:
    """Run this rank's part of an evaluation. Rank 0 writes the files, and makes the attacks alone."""
    # Imported here: the process that starts the group imports this module and does not need transformers.
    from ofmu.evaluator import evaluate

    config = UnlearnConfig.model_validate(task.config)
    _seed_global_generators(config.seed)
    return _outcome_of(lambda: evaluate(task.model, config, reference=task.reference, output_dir=task.output_dir))


def _outcome_of(work: Callable[[], object]) -> RankOutcome:
    """Do the work. An error that all ranks meet is an outcome, so that the group survives."""
    try:
        work()
    except StorageError:
        # As in a run: the other ranks would wait for this one.
        raise
    except OfmuError as error:
        return RankOutcome(error=type(error).__name__, message=str(error))
    return RankOutcome()


def _mirror_of_rank(mirror: Mirror) -> Mirror:
    """Return a mirror of the same URI with a local folder for this rank, which holds the run's small files."""
    rank = ray.train.get_context().get_world_rank()
    own = Mirror(mirror.uri, mirror.local / f"rank_{rank:05d}")
    shutil.rmtree(own.local, ignore_errors=True)
    own.local.mkdir(parents=True)
    own.pull_top_level()
    return own


def _upload(mirror: Mirror | None) -> None:
    """Upload rank 0's files. Delete the local folder of every rank."""
    if mirror is not None:
        if ray.train.get_context().get_world_rank() == 0:
            mirror.push(without=(CHECKPOINTS,))
        shutil.rmtree(mirror.local, ignore_errors=True)


def _free_memory() -> None:
    """Free the cycles and cached blocks of a closed engine, and reset the peak memory for the next task."""
    import torch

    release_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _seed_global_generators(seed: int) -> None:
    """Seed the global generators, since a user's method may draw from them."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
