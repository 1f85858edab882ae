"""One trial as Ray Tune runs it: a process that stays warm and executes one whole unlearning run per step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune as ray_tune

from cluster.local import restore_umask
from cluster.storage.credentials import set_credentials
from ofmu.engine.device import out_of_memory, release_memory
from ofmu.errors import OfmuError, PrunedError, RunError, StorageError
from ofmu.io.lock import locked
from ofmu.round_decision import StopAfterRound
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import check_no_links
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.rundir.trial_files import TrialFiles

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from tune.checkpoint_selection.callback import CheckpointSelection
    from tune.early_stopping.callback import EarlyStopping

Executor = Callable[[UnlearnConfig, "ClusterConfig", Path, Any], Mapping[str, Any]]
"""Run one trial and return its metrics. Arguments: the run's config, the section ``cluster``, the trial's directory,
and what ``prepare`` returned. If the executor has a method ``close``, it is called when its process gets no more
trials."""

_LOCK_SECONDS = 120.0
"""How long a trial waits for another process that still works on the same trial."""


class UnlearningTrial(ray_tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Run trials one after the other in one process, so that only the first trial pays for the imports.

    A step returns ``outcome``, which is a :class:`tune.execution.trial_records.TrialOutcome` as JSON text. Any other
    exception, and the death of the process, is left to Ray Tune, which may retry the trial.
    """

    def setup(
        self,
        config: dict[str, Any],
        executor: Executor | None = None,
        cluster: Any = None,
        prepared: Any = None,
        early_stopping: EarlyStopping | CheckpointSelection | None = None,
        credentials: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what all trials share.

        Args:
            config: the first trial's spec, as JSON values.
            executor: runs one trial.
            cluster: the section ``cluster``.
            prepared: what ``prepare`` returned.
            early_stopping: if given, the executor gets the keyword ``round_callback`` for each trial whose spec asks
                for early stopping. A spec with a last round has a round callback of its own.
            credentials: variables of the driver's environment that open its storage.

        Raises:
            RunError: there is no executor.
        """
        if executor is None:
            raise RunError("UnlearningTrial needs an executor: start searches through tune.ParetoSearch")
        restore_umask()
        set_credentials(credentials or {})
        self._executor, self._cluster, self._prepared = executor, cluster, prepared
        self._early_stopping = early_stopping
        self._spec = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's spec."""
        self._spec = new_config
        return True

    def cleanup(self) -> None:
        """Close the executor. A worker group would otherwise keep its CPUs and GPUs."""
        close = getattr(self._executor, "close", None)
        if close is not None:
            close()

    def step(self) -> dict[str, Any]:
        """Run the whole trial, or return what an earlier process has finished."""
        return {"outcome": json.dumps(self._outcome().to_json(), default=float), "done": True}

    def _outcome(self) -> TrialOutcome:
        try:
            return TrialOutcome(metrics=self._run_locked(TrialSpec.from_json(self._spec)))
        except PrunedError as error:
            return TrialOutcome(pruned=error.record)
        except StorageError as error:
            return TrialOutcome(storage_error=str(error))
        except OfmuError as error:
            return TrialOutcome(failure=str(error))
        except (MemoryError, RuntimeError) as error:
            sentence = out_of_memory(error)
            if sentence is None:
                raise
            release_memory()
            return TrialOutcome(failure=sentence)

    def _run_locked(self, spec: TrialSpec) -> dict[str, Any]:
        """Run under the trial's lock. A process of a killed search may still work on this trial."""
        check_no_links(spec.trial_dir)
        busy = f"Another process still works on {spec.trial_dir}: stop it, then resume"
        with locked(spec.trial_dir, busy, timeout=_LOCK_SECONDS):
            finished = TrialFiles(spec.trial_dir).read_metrics()
            return finished if finished is not None else self._run(spec)

    def _run(self, spec: TrialSpec) -> dict[str, Any]:
        started = time.monotonic()
        execute: Callable[..., Mapping[str, Any]] = self._executor
        if spec.last_round is not None:
            execute = partial(execute, round_callback=StopAfterRound(spec.last_round))
        elif self._early_stopping is not None and spec.early_stopping:
            execute = partial(execute, round_callback=self._early_stopping.callback_for(spec.number))
        metrics = dict(execute(spec.run, self._cluster, spec.trial_dir, self._prepared))
        metrics.setdefault("seconds", time.monotonic() - started)
        TrialFiles(spec.trial_dir).write_metrics_if_missing(metrics)
        return metrics
