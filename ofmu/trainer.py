"""One run from config to scored, saved model: start-up, the two loops with checkpoints, evaluation."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ofmu.checkpointing import Listener, LocalReporter, Reporter, barrier
from ofmu.compatibility import ineffective_settings
from ofmu.early_stopping import Judge, Standing, raise_if_pruned, write_account
from ofmu.engine import Engine, build_engine
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.cost import Ledger, peak_memory_per_rank
from ofmu.errors import PrunedError, RunError
from ofmu.io.environment import environment
from ofmu.io.files import write_json, write_text
from ofmu.io.library_logging import quiet_libraries
from ofmu.methods import build_method
from ofmu.methods.base import Context, Method
from ofmu.run_config import UnlearnConfig
from ofmu.task import Task, load_task

if TYPE_CHECKING:
    from ofmu.finetune import Listener as PrepareListener
    from ofmu.preparer import Prepared


@dataclass(frozen=True)
class UnlearnResult:
    """A finished run: its metrics, why some are missing, and where its model is."""

    metrics: dict[str, float | None]
    reasons: dict[str, str]
    output_dir: Path

    @property
    def model_dir(self) -> Path:
        """Directory that ``from_pretrained`` loads."""
        return self.output_dir / "model"


def unlearn(
    config: UnlearnConfig,
    output_dir: str | Path,
    *,
    prepared: Prepared | None = None,
    listener: Listener | None = None,
    reporter: Callable[[int], Reporter] | None = None,
    checkpoint_every: int = 1,
    prepare_listener: PrepareListener | None = None,
    judge: Judge | None = None,
) -> UnlearnResult:
    """Run ``config``'s method and leave model, scores, history and cost in ``output_dir``.

    Called on every rank of a process group, or alone. A run that was cut off continues from its newest whole
    checkpoint; a finished one returns at once. ``metrics.json`` is written last, so its presence means complete.

    Args:
        config: the whole run.
        output_dir: a directory of its own that all ranks see; rank 0 writes to it.
        prepared: target and reference; None prepares them, or finds them in the cache.
        listener: hears one record per outer step, on rank 0.
        reporter: made from the rank; keeps checkpoints elsewhere than in ``output_dir``.
        checkpoint_every: rounds from one checkpoint to the next; 0 keeps none.
        prepare_listener: hears how the preparation goes; see :func:`ofmu.preparer.prepare`.
        judge: called on every rank after each round but the last, before its checkpoint; it may end the run. Its
            seconds count as evaluation. A method that does not know its ``total_rounds`` is not judged.

    Raises:
        PrunedError: the judge ended the run, now or in an earlier attempt; its account is left in ``pruned.json``.
        OfmuError: whatever the user can mend; what was written before stays.
    """
    directory = Path(output_dir)
    finished = _finished_run(config, directory)
    if finished is not None:
        return finished
    if judge is not None:
        raise_if_pruned(directory)
    for note in ineffective_settings(config):
        warnings.warn(note, stacklevel=2)
    if prepared is None:
        from ofmu.preparer import prepare

        prepared = prepare(config, listener=prepare_listener)
    quiet_libraries()
    return _Run(config, directory, prepared, checkpoint_every, judge).execute(listener, reporter)


class _Run:
    """One attempt at a run, in reading order."""

    def __init__(
        self, config: UnlearnConfig, directory: Path, prepared: Prepared, checkpoint_every: int, judge: Judge | None
    ) -> None:
        self._config, self._directory, self._prepared = config, directory, prepared
        self._checkpoint_every, self._judge = checkpoint_every, judge
        self._ledger = Ledger()

    def execute(self, listener: Listener | None, make_reporter: Callable[[int], Reporter] | None) -> UnlearnResult:
        config = self._config
        with self._ledger.phase("start_up"):
            task = load_task(config, self._prepared)
            engine = build_engine(task.load_model(exact=config.method.exact), config.engine, self._ledger)
        # whatever fails from here on, a warm process must get its process group and memory back
        try:
            with self._ledger.phase("start_up"):
                method = build_method(Context(engine, task, _seed_of_run(config)), config.method)
                self._write_settings(engine)
                checkpoints = self._directory / "checkpoints"
                reporter = (
                    make_reporter(engine.rank) if make_reporter else LocalReporter(checkpoints, engine.rank, listener)
                )
                self._resume(engine, method, reporter)
            self._unlearn(engine, method, task, reporter)
            with self._ledger.phase("evaluation"):
                scores = task.score(engine)
            self._save_model(engine, task)
            result = self._finish(engine, method, task, scores)
        finally:
            engine.close()
        if engine.rank == 0:
            shutil.rmtree(checkpoints, ignore_errors=True)
        return result

    def _write_settings(self, engine: Engine) -> None:
        if engine.rank == 0:
            settings = yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False)
            write_text(self._directory / "config.yaml", settings)
            write_json(self._directory / "environment.json", environment() | {"ranks": engine.world_size})

    def _resume(self, engine: Engine, method: Method[Any], reporter: Reporter) -> None:
        latest = reporter.latest()
        self._history: list[dict[str, Any]] = []
        if latest is None:
            return
        state, vectors = load_checkpoint(latest, engine.space)
        method.restore(state["loop"], vectors)
        self._ledger.restore(state["ledger"])
        self._history = state["history"]

    def _unlearn(self, engine: Engine, method: Method[Any], task: Task[Any], reporter: Reporter) -> None:
        every = self._checkpoint_every

        def write(directory: Path) -> None:
            state = {"loop": method.state(), "ledger": self._ledger.state(), "history": self._history}
            save_checkpoint(directory, engine.space, method.vectors(), state, engine.rank, engine.world_size)

        for record in method.rounds():
            line: dict[str, Any] = asdict(record) | {
                "gradient_evaluations": self._ledger.gradient_evaluations,
                "tokens": self._ledger.tokens,
                "seconds": sum(self._ledger.seconds.values()),
            }
            self._history.append(line)
            if engine.rank == 0:
                lines = "".join(json.dumps(entry) + "\n" for entry in self._history)
                write_text(self._directory / "history.jsonl", lines)
            self._let_judge(engine, method, task)
            reporter.outer_step(line, write if every and len(self._history) % every == 0 else None)

    def _let_judge(self, engine: Engine, method: Method[Any], task: Task[Any]) -> None:
        """Ask before the checkpoint is taken: a restart then asks again, and cannot slip past its verdict."""
        round, total = len(self._history), method.total_rounds
        if self._judge is None or total is None or round >= total or method.stationary:
            return
        standing = Standing(
            round=round,
            total=total,
            record=self._history[-1],
            engine=engine,
            task=task,
            reference_scores=self._prepared.reference_scores,
        )
        try:
            with self._ledger.phase("evaluation"):
                self._judge(standing)
        except PrunedError as error:
            account = error.account | {"metrics": self._costs(method)[0]}
            if engine.rank == 0:
                write_account(self._directory, account)
            raise PrunedError(account) from None

    def _costs(self, method: Method[Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Return what the run has cost so far, as metrics and by phase and rank; collective."""
        cost = self._ledger.state() | {"peak_memory_bytes": peak_memory_per_rank()}
        return {
            "gradient_evaluations": float(self._ledger.gradient_evaluations),
            "tokens": float(self._ledger.tokens),
            "seconds": sum(self._ledger.seconds.values()),
            "peak_memory_bytes": float(max(max(peaks.values()) for peaks in cost["peak_memory_bytes"])),
            "outer_steps_taken": float(method.steps_taken),
        }, cost

    def _save_model(self, engine: Engine, task: Task[Any]) -> None:
        """Save the fp32 masters, gathered from their shards, in the form that ``from_pretrained`` loads."""
        full = engine.space.gather(engine.space.masters())
        if engine.rank == 0:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in full.items()}
            task.save(engine.model, self._directory / "model", weights)

    def _finish(self, engine: Engine, method: Method[Any], task: Task[Any], scores: Any) -> UnlearnResult:
        metrics = task.metrics(scores, self._prepared.reference_scores)
        costs, cost = self._costs(method)
        values = metrics.values | costs
        if engine.rank == 0:
            scores.save(self._directory / "scores.json")
            report = metrics.to_json() | {
                "metrics": values,
                "cost": cost,
                "stationary": method.stationary,
                "seed": self._config.seed,
                "data_hash": task.content_hash,
                "prepared": dict(self._prepared.keys),
                "config": self._config.model_dump(mode="json"),
                "environment": environment(),
            }
            write_json(self._directory / "metrics.json", report)
        barrier()
        return UnlearnResult(values, metrics.reasons, self._directory)


def _seed_of_run(config: UnlearnConfig) -> int:
    return config.seed if config.method.seed is None else config.method.seed


def _finished_run(config: UnlearnConfig, directory: Path) -> UnlearnResult | None:
    """Return the result of a run that is complete, None for a new or unfinished one.

    Raises:
        RunError: the directory holds a run under another config.
    """
    settings = directory / "config.yaml"
    if settings.is_file():
        earlier = yaml.safe_load(settings.read_text(encoding="utf-8"))
        if earlier != config.model_dump(mode="json"):
            raise RunError(f"{directory} holds a run under another config: choose another directory, or delete it")
    metrics = directory / "metrics.json"
    if not metrics.is_file():
        return None
    report = json.loads(metrics.read_text(encoding="utf-8"))
    return UnlearnResult(report["metrics"], report["reasons"], directory)
