"""Warm worker groups: one Ray Train run that takes trial after trial, where a run per trial would start afresh.

Processes, imports, the process group and DeepSpeed's world stay; model, optimizer, data and random state are made
anew by every trial, so that a warm trial gives the numbers of a cold one.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.storage.mirror import Mirror, below, storage_at
from cluster.train.checkpointers import UriCheckpointer
from cluster.train.task_queue import Mailbox
from cluster.train.trainer import cause_of, read_metrics, run_trial, worker_layout
from ofmu import errors
from ofmu.errors import OfmuError, PrunedError, RunError, StorageError
from ofmu.run_config import UnlearnConfig

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.early_stopping import RoundCallback
    from ofmu.tasks.preparation import Prepared

_LOOK_SECONDS = 1.0
"""How soon the end of a group is noticed; an outcome is noticed at once."""
_CLOSE_SECONDS = 60.0


class WarmTrials:
    """Runs one trial after the other as :func:`cluster.train.trainer.run_trial` does, in a worker group that stays.

    Another model, engine section (ZeRO stage, precision, threads) or layout of workers ends the group and starts a
    cold one. So does a crash, after which the trial goes on from its last checkpoint. A cluster that is too small is
    waited for, since it may have lost a node a moment ago: :func:`cluster.session.trials_at_a_time` refuses one. With
    ``num_workers`` 0 trials run in this process. An unused one can be pickled.
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
        """Run one trial and return its metrics; a finished one returns at once.

        With a ``mirror`` of ``trial_dir`` every rank works in a folder of its own, and all meet at the mirror's URI.

        Raises:
            OfmuError: whatever the user can mend; a group whose ranks all met it alike stays warm.
            PrunedError: the round callback ended the run.
            RunError: the group crashed more than ``cluster.max_failures`` times on this trial.
        """
        trial_dir = Path(trial_dir).absolute()
        if cluster.num_workers == 0:
            return run_trial(config, cluster, trial_dir, prepared, round_callback=round_callback, mirror=mirror)
        order = {
            "config": config.model_dump(mode="json"),
            "trial_dir": str(trial_dir),
            "prepared": prepared,
            "checkpoint_every": cluster.checkpoint_every,
            "judge": round_callback,
            "mirror": mirror,
        }
        outcome = self._carry_out(order, config, cluster, trial_dir, prepared)
        if mirror is not None:
            mirror.pull(_small_files(mirror))
        if outcome.get("pruned"):
            from ofmu.early_stopping import raise_if_pruned

            raise_if_pruned(trial_dir)
        if "kind" in outcome:
            kind: Callable[[str], OfmuError] = getattr(errors, outcome["kind"], OfmuError)
            raise kind(outcome["sentence"])
        return read_metrics(trial_dir)

    def close(self) -> None:
        """End the worker group, where there is one, and free what it held."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _carry_out(
        self,
        order: dict[str, Any],
        config: UnlearnConfig,
        cluster: ClusterConfig,
        trial_dir: Path,
        prepared: Prepared,
    ) -> dict[str, Any]:
        """Return the group's outcome, from as many groups as the trial may crash."""
        failures = 0
        while True:
            group = self._warm_group(config, cluster, trial_dir, prepared, order["mirror"])
            try:
                return group.run(order)
            except GroupCrashedError as error:
                self.close()
                if isinstance(error.__cause__, OfmuError):
                    raise error.__cause__ from error
                failures += 1
                if 0 <= cluster.max_failures < failures:
                    raise RunError(
                        f"The worker group crashed {failures} time{'s' * (failures > 1)} on this trial ({error}): if "
                        "memory ran out, lower engine.micro_batch_size or raise cluster.num_workers"
                    ) from error

    def _warm_group(
        self,
        config: UnlearnConfig,
        cluster: ClusterConfig,
        trial_dir: Path,
        prepared: Prepared,
        mirror: Mirror | None,
    ) -> WorkerGroup:
        key = json.dumps(
            [
                config.model.model_dump(mode="json"),
                config.engine.model_dump(mode="json"),
                str(prepared.target),
                [cluster.num_workers, cluster.cpus_per_worker, cluster.gpus_per_worker],
            ]
        )
        if self._group is not None and (self._group.key != key or not self._group.is_alive):
            self.close()
        if self._group is None:
            # every node sees the trial's directory, and Ray Train asks for a place that every node sees
            self._group = WorkerGroup(key, cluster, mirror.uri if mirror is not None else str(trial_dir))
        return self._group


class GroupCrashedError(Exception):
    """A worker group that ended before its order did; the cause is what ended it."""


class WorkerGroup:
    """A Ray Train run in a thread of this process, whose ranks take orders from a mailbox.

    Mailbox and run belong to this process, and end with it.
    """

    def __init__(self, key: str, cluster: ClusterConfig, storage: str) -> None:
        self.key = key
        """What all trials of this group have in common."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        self._mailbox = actor.remote(cluster.num_workers)
        self._failure: Exception | None = None
        system, path = storage_at(below(storage, "ray_train"))
        trainer = TorchTrainer(
            _take_orders,
            train_loop_config={"mailbox": self._mailbox},
            **worker_layout(cluster),
            run_config=RunConfig(
                name=f"group-{uuid.uuid4().hex[:12]}",
                # not by its URI, which Ray may write down with the keys in it
                storage_filesystem=system,
                storage_path=path,
                # a crash is counted against the trial that was at work, so Ray Train must not repeat it by itself
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="worker group", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Return whether the group starts, works or waits for orders, as far as Ray Train has noticed."""
        return self._thread.is_alive()

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Let every rank carry out ``order``; return rank 0's outcome.

        Raises:
            GroupCrashedError: a rank was lost, or met what the others did not.
        """
        try:
            number = ray.get(self._mailbox.post.remote([ray.put(order)]))
            outcome = self._mailbox.outcome.remote(number)
            while not ray.wait([outcome], timeout=_LOOK_SECONDS)[0]:
                if not self._thread.is_alive():
                    cause = self._failure or RuntimeError("the worker group ended by itself")
                    raise GroupCrashedError(str(cause)) from cause
            return dict(ray.get(outcome))
        except ray.exceptions.RayActorError as error:
            raise GroupCrashedError("the group's mailbox was lost") from error

    def close(self) -> None:
        """Send the ranks home, and wait until what they reserved is free; a group that does not hear ends by force."""
        if self._thread.is_alive():
            self._mailbox.close.remote()
            self._thread.join(_CLOSE_SECONDS)
        ray.kill(self._mailbox)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            self._failure = cause_of(error)
        except Exception as error:  # the thread's end is looked at by run(), which raises it
            self._failure = error


def _take_orders(settings: dict[str, Any]) -> None:
    """One rank's life: trials until there are no more. Whatever only this rank meets ends the group."""
    from ofmu.io.library_logging import silence_libraries

    silence_libraries()
    mailbox, rank, number = settings["mailbox"], ray.train.get_context().get_world_rank(), 0
    while (taken := ray.get(mailbox.order.remote(number))) is not None:
        is_first = number == 0
        number, (reference,) = taken
        outcome = _run_order(ray.get(reference))
        _free_memory()
        if is_first:
            # imports left some 350,000 objects that stay; looking through them after every trial takes .2 s
            gc.freeze()
        ray.get(mailbox.answer.remote(number, rank, outcome))


def _run_order(order: dict[str, Any]) -> dict[str, Any]:
    """Run one rank's part of a trial; an error that all ranks meet alike is an outcome."""
    from ofmu.trainer import unlearn

    config, mirror = UnlearnConfig.model_validate(order["config"]), order["mirror"]
    if mirror is not None:
        mirror = _own_mirror(mirror)
    _reset_random_state(config.seed)
    try:
        unlearn(
            config,
            Path(order["trial_dir"]) if mirror is None else mirror.local,
            prepared=order["prepared"],
            make_checkpointer=partial(UriCheckpointer, mirror=mirror) if mirror is not None else None,
            checkpoint_every=order["checkpoint_every"],
            round_callback=order["judge"],
        )
    except PrunedError:
        _hand_in(mirror)
        return {"pruned": True}
    except StorageError:
        # one rank's disk is not the others'
        raise
    except OfmuError as error:
        return {"kind": type(error).__name__, "sentence": str(error)}
    _hand_in(mirror)
    return {}


def _small_files(mirror: Mirror) -> list[str]:
    return [name for name in mirror.files() if "/" not in name]


def _own_mirror(mirror: Mirror) -> Mirror:
    """Return a mirror of the same URI with an empty folder for this rank, and what the run has left there."""
    rank = ray.train.get_context().get_world_rank()
    own = Mirror(mirror.uri, mirror.local / f"rank_{rank:05d}")
    shutil.rmtree(own.local, ignore_errors=True)
    own.local.mkdir(parents=True)
    own.pull(_small_files(own))
    return own


def _hand_in(mirror: Mirror | None) -> None:
    """Send rank 0's files, and take away what lies here."""
    if mirror is not None:
        if ray.train.get_context().get_world_rank() == 0:
            mirror.push(without=("checkpoints",))
        shutil.rmtree(mirror.local, ignore_errors=True)


def _free_memory() -> None:
    """Give back what a closed engine leaves, cycles and cached blocks, and count the next trial's peak afresh."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _reset_random_state(seed: int) -> None:
    """Start the global generators alike for every trial: a method of the user's may draw from them."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
