"""One trial as Ray Tune runs it: a warm process that carries one whole unlearning run through per step."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from ray import tune as ray_tune

from ofmu.errors import OfmuError, PrunedError, RunError, StorageError
from ofmu.io.files import storage_errors, write_json
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, finite_only

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from tune.early_stopping.service import Judging

Executor = Callable[[UnlearnConfig, "ClusterConfig", Path, Any], Mapping[str, Any]]
"""Runs one trial: its config, the cluster section, its directory and what ``prepare`` returned, to its metrics.
One with a method ``close`` is closed when no more trials come to its process."""

_ORPHAN_SECONDS = 120.0


class UnlearningTrial(ray_tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Runs trials one after the other in the same process, so that only the first pays for the imports.

    A step ends with ``outcome``: a JSON text of the metrics, of the reason of a failure that another try would
    only repeat, of a failed write, which stops the search for the disk to be mended, or the account of a run that
    was stopped early. Anything else that is raised, and the process's death, is Tune's to retry.
    """

    def setup(
        self,
        config: dict[str, Any],
        executor: Executor | None = None,
        cluster: Any = None,
        prepared: Any = None,
        judging: Judging | None = None,
    ) -> None:
        """Keep what all trials share; ``config`` is the first trial's specification.

        With ``judging``, a trial whose specification is marked as ``judged`` is run with a keyword ``round_callback``.
        """
        if executor is None:
            raise RunError("UnlearningTrial needs an executor: start searches through tune.ParetoSearch")
        self._executor, self._cluster, self._prepared, self._judging = executor, cluster, prepared, judging
        self._specification = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over the next trial's specification."""
        self._specification = new_config
        return True

    def cleanup(self) -> None:
        """Let the executor end what it keeps between trials: a worker group holds CPUs and GPUs."""
        close = getattr(self._executor, "close", None)
        if close is not None:
            close()

    def step(self) -> dict[str, Any]:
        """Run the trial to its end, or return what an earlier process already finished."""
        trial_dir = Path(self._specification["trial_dir"])
        try:
            metrics = self._run_alone(trial_dir)
            outcome: dict[str, Any] = {"metrics": metrics}
        except PrunedError as error:
            outcome = {"pruned": error.record.to_json()}
        except StorageError as error:
            outcome = {"storage": str(error)}
        except OfmuError as error:
            outcome = {"failure": str(error)}
        except MemoryError:
            outcome = {"failure": "out of memory: lower method.batch_size or engine.micro_batch_size"}
        except RuntimeError as error:
            if not _is_device_out_of_memory(error):
                raise
            sys.modules["torch"].cuda.empty_cache()
            outcome = {"failure": f"out of GPU memory: {str(error).splitlines()[0]}"}
        return {"outcome": json.dumps(outcome, default=float), "done": True}

    def _run_alone(self, trial_dir: Path) -> dict[str, Any]:
        """Run under the trial's lock: a killed search's process may still be at work on this very trial."""
        lock = FileLock(trial_dir / ".lock")
        with storage_errors(trial_dir):
            trial_dir.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=_ORPHAN_SECONDS)
            except Timeout:
                raise RunError(f"Another process keeps working on {trial_dir}: stop it, then resume") from None
        try:
            finished = RunFiles(trial_dir).read_metrics()
            return finished if finished is not None else self._run(trial_dir)
        finally:
            lock.release()

    def _run(self, trial_dir: Path) -> dict[str, Any]:
        started = time.monotonic()
        run = UnlearnConfig.model_validate(self._specification["run"])
        metrics = dict(self._execute(run, trial_dir))
        metrics.setdefault("seconds", time.monotonic() - started)
        if not (trial_dir / "metrics.json").exists():
            write_json(trial_dir / "metrics.json", {"metrics": finite_only(metrics)})
        return metrics

    def _execute(self, run: UnlearnConfig, trial_dir: Path) -> Mapping[str, Any]:
        execute: Callable[..., Mapping[str, Any]] = self._executor
        if self._judging is not None and self._specification.get("judged"):
            execute = partial(execute, round_callback=self._judging.of(self._specification["number"]))
        return execute(run, self._cluster, trial_dir, self._prepared)


def _is_device_out_of_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)
