"""The verb train: one run from a config to a scored and saved model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ofmu.checkpointing import Checkpointer, LocalCheckpointer, ProgressCallback
from ofmu.content import content_of, read_content, write_content
from ofmu.earlier_run import check_earlier_run
from ofmu.early_stopping import RoundCallback, RoundSelector, RoundState, raise_if_pruned
from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine, weight_sharder
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.cost import CostTracker, peak_memory_per_rank, reset_peak_memory
from ofmu.engine.process_group import number_of_ranks
from ofmu.engine.rank_zero import on_rank_0
from ofmu.engine.repeatable import check_repeatable
from ofmu.engine.saving import save_on_rank_0
from ofmu.errors import PrunedError
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.robustness.result import RobustnessResult, with_robustness
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.io.library_logging import silence_libraries
from ofmu.io.ranks import ranks_on_this_machine
from ofmu.kept_round import KeptRound
from ofmu.methods.base import Context, Method
from ofmu.methods.build import build_method
from ofmu.methods.retain_subset import retain_rows_entry
from ofmu.plan.check import check_fit
from ofmu.plan.decision import decide_run
from ofmu.preflight import check_parts_of_model
from ofmu.preparer import prepare
from ofmu.round_decision import RoundDecision
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, check_output, started_at, stored_values
from ofmu.task import RobustnessTask, Task
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.load import task_family
from ofmu.tasks.preparation import Prepared


@dataclass(frozen=True)
class UnlearnResult:
    """A complete run: its metrics, the reasons of missing metrics, and its directory."""

    metrics: dict[str, float | None]
    reasons: dict[str, str]
    output_dir: Path

    @property
    def model_dir(self) -> Path:
        """Directory that ``from_pretrained`` loads."""
        return RunFiles(self.output_dir).model


def unlearn(
    config: UnlearnConfig,
    output_dir: str | Path,
    *,
    prepared: Prepared | None = None,
    callback: ProgressCallback | None = None,
    make_checkpointer: Callable[[int], Checkpointer] | None = None,
    checkpoint_every: int = 1,
    prepare_callback: PreparationCallback | None = None,
    round_callback: RoundCallback | None = None,
) -> UnlearnResult:
    """Run the config's method. Write model, scores, history and cost to ``output_dir``.

    Call this function on every rank of a process group, or in one process. An interrupted run continues from its newest
    complete checkpoint. A complete run returns at once. ``metrics.json`` is written last, so its presence says that the
    run is complete.

    Args:
        config: the run.
        output_dir: a directory for this run only. All ranks must see the directory; rank 0 writes to it.
        prepared: the target and the reference. None: prepare them, or find them in the cache.
        callback: called on rank 0 with one record per round.
        make_checkpointer: returns a checkpointer for a rank. None: checkpoints lie in ``output_dir``.
        checkpoint_every: rounds between two checkpoints. 0: no checkpoints.
        prepare_callback: see :func:`ofmu.preparer.prepare`.
        round_callback: called on every rank after each round but the last, before the round's checkpoint. The callback
            may end the run. Its seconds count as evaluation. A method without ``total_rounds`` never calls it. A
            :class:`ofmu.early_stopping.RoundSelector` is called after the last round too, and selects the round from
            which the model comes. The metric ``selected_round`` then says which one.

    Raises:
        MemoryLimitError: the run needs more memory than this machine has, and nothing is prepared yet.
        PrunedError: the round callback ended the run, in this attempt or an earlier one. ``pruned.json`` holds why.
        OfmuError: an error that the user can fix. Files that were written before stay.
    """
    directory = Path(output_dir)
    config.engine.check_ranks(number_of_ranks())
    if config.engine.undecided:
        check_output(directory)
        config = decide_run(config, RunFiles(directory).read_config()).config
    content = check_earlier_run(config, directory, with_models=prepared is None)
    complete = _complete_run(directory)
    if complete is not None:
        return complete
    if round_callback is not None:
        raise_if_pruned(directory)
    for note in (*config.departures().values(), *config.ineffective(), *config.method.cautions()):
        warnings.warn(note, stacklevel=2)
    if prepared is None:
        check_parts_of_model(config)
        check_fit(config, ranks=ranks_on_this_machine())
    task_family(config.data.kind).check_evaluation(config)
    # Who prepares many runs at once guards the models, which take long to read.
    hash_models = prepared is None
    if prepared is None:
        prepared = prepare(config, callback=prepare_callback)
    silence_libraries()
    run = _Run(config, directory, prepared, checkpoint_every, round_callback, hash_models=hash_models, content=content)
    return run.execute(callback, make_checkpointer)


class _Run:
    """One attempt at a run, in reading order."""

    def __init__(
        self,
        config: UnlearnConfig,
        directory: Path,
        prepared: Prepared,
        checkpoint_every: int,
        round_callback: RoundCallback | None,
        *,
        hash_models: bool,
        content: dict[str, str] | None,
    ) -> None:
        self._hash_models, self._content = hash_models, content
        self._config, self._files, self._prepared = config, RunFiles(directory), prepared
        self._checkpoint_every, self._round_callback = checkpoint_every, round_callback
        self._cost_tracker = CostTracker()
        self._kept: KeptRound | None = None
        self._ended_early = False
        """Whether the round callback ended the run before its last round."""
        self._selected_round: int | None = None
        """The round whose weights are the model, if a round callback had a say in it."""

    def execute(
        self, callback: ProgressCallback | None, make_checkpointer: Callable[[int], Checkpointer] | None
    ) -> UnlearnResult:
        config, files = self._config, self._files
        reset_peak_memory()
        with self._cost_tracker.phase("start_up"):
            task = task_family(config.data.kind).load_task(config, self._prepared.target)
            shard = weight_sharder(config.engine)
            model = task.load_model(double_backward=config.method.needs_double_backward, shard=shard)
            engine = build_engine(model, config.engine, self._cost_tracker)
        # Whatever fails from here on, a warm process must get its process group and its memory back.
        try:
            with self._cost_tracker.phase("start_up"):
                check_repeatable(engine, task.loss, task.forget_rows)
                if isinstance(task, RobustnessTask):
                    task.keep_target(engine, files.directory)
                method = build_method(Context(engine, task, config.seed_of_run), config.method)
                on_rank_0(lambda: self._write_config(engine, task))
                checkpointer = (
                    make_checkpointer(engine.rank)
                    if make_checkpointer
                    else LocalCheckpointer(files.checkpoints, engine.rank, callback)
                )
                self._resume(engine, method, checkpointer)
            self._unlearn(engine, method, task, checkpointer)
            with self._cost_tracker.phase("evaluation"):
                scores = self._score(engine, method, task)
            self._save_model(engine, task)
            result = self._finish(engine, method, task, scores)
        finally:
            engine.close()
        if engine.rank == 0:
            shutil.rmtree(files.checkpoints, ignore_errors=True)
        return result

    def _write_config(self, engine: Engine, task: Task[Any]) -> None:
        directory, content = self._files.directory, self._content
        # The environment shows that the directory is ours, so an interruption must not leave a config without it.
        started = started_at(directory) or datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(self._files.environment, environment() | {"ranks": engine.world_size, "time": started})
        if content is None:
            content = content_of(self._config, rows_hash=task.content_hash, models=self._hash_models)
        write_content(directory, read_content(directory) | content)
        self._files.write_config(self._config.model_dump(mode="json"))

    def _resume(self, engine: Engine, method: Method[Any], checkpointer: Checkpointer) -> None:
        latest = checkpointer.latest_checkpoint()
        self._history: list[dict[str, Any]] = []
        if latest is None:
            return
        state, vectors = load_checkpoint(latest, engine.space)
        self._kept = KeptRound.pop_from(state, vectors)
        method.restore(state["loop"], vectors)
        self._cost_tracker.restore(state["costs"])
        self._history = state["history"]

    def _unlearn(self, engine: Engine, method: Method[Any], task: Task[Any], checkpointer: Checkpointer) -> None:
        every = self._checkpoint_every

        def write(directory: Path) -> None:
            state = {"loop": method.state(), "costs": self._cost_tracker.state(), "history": self._history}
            vectors = method.vectors()
            if self._kept is not None:
                state, vectors = state | self._kept.state, vectors | self._kept.vectors
            save_checkpoint(directory, engine.space, vectors, state, engine.rank, engine.world_size)

        for record in method.rounds():
            line: dict[str, Any] = asdict(record) | {
                "gradient_evaluations": self._cost_tracker.gradient_evaluations,
                "tokens": self._cost_tracker.tokens,
                "seconds": sum(self._cost_tracker.seconds.values()),
            }
            self._history.append(line)
            if engine.rank == 0:
                self._files.write_history(self._history)
            decision = self._call_round_callback(engine, method, task)
            if decision.keep:
                self._kept = KeptRound.of(len(self._history), engine.space, reuse=self._kept)
            if decision.end:
                # Without a checkpoint: a restarted run repeats the round, and ends there again.
                self._ended_early = True
                checkpointer.on_round_end(line, None)
                return
            checkpointer.on_round_end(line, write if every and len(self._history) % every == 0 else None)

    def _round_state(self, engine: Engine, method: Method[Any], task: Task[Any]) -> RoundState:
        round, total = len(self._history), method.total_rounds
        return RoundState(
            round=round,
            total=round if total is None or method.stationary else total,
            record=self._history[-1] if self._history else {},
            engine=engine,
            task=task,
            reference_scores=self._prepared.reference_scores,
            kept_round=None if self._kept is None else self._kept.round,
        )

    def _call_round_callback(self, engine: Engine, method: Method[Any], task: Task[Any]) -> RoundDecision:
        """Call the round callback. The checkpoint follows, so a restarted run calls it again and cannot skip it."""
        round, total, callback = len(self._history), method.total_rounds, self._round_callback
        if callback is None or total is None:
            return RoundDecision()
        is_last = round >= total or method.stationary
        if is_last and not isinstance(callback, RoundSelector):
            return RoundDecision()
        try:
            with self._cost_tracker.phase("evaluation"):
                decision = callback(self._round_state(engine, method, task))
                return RoundDecision() if decision is None or is_last else decision
        except PrunedError as error:
            record = error.record.with_metrics(self._costs(method)[0])
            if engine.rank == 0:
                self._files.write_pruning_record(record)
            raise PrunedError(record) from None

    def _score(self, engine: Engine, method: Method[Any], task: Task[Any]) -> Any:
        """Return the scores of the last round, or of the kept round if that is selected; collective.

        The engine then has the weights of the selected round, rounded to the type that is saved. A run that was ended
        early and that kept a round has no other candidate.
        """
        space, last, callback = engine.space, len(self._history), self._round_callback
        selector = callback if isinstance(callback, RoundSelector) else None
        is_selected = selector is not None or self._ended_early
        kept = self._kept if is_selected else None
        state, found, last_weights = self._round_state(engine, method, task), {}, None
        if kept is None or not self._ended_early:
            space.round_parameters(task.saved_dtype)
            found[last] = task.score(engine)
        if kept is not None:
            last_weights = KeptRound.of(last, space) if last in found else None
            space.restore(kept.theta)
            space.round_parameters(task.saved_dtype)
            found[kept.round] = task.score(engine)
        selected = max(found)
        if selector is not None:
            costs, reference = self._costs(method)[0], self._prepared.reference_scores
            values = {round: {**task.metrics(scores, reference).values, **costs} for round, scores in found.items()}
            selected = selector.select(state, values)
        if last_weights is not None and selected == last:
            space.restore(last_weights.theta)
        self._selected_round = selected if is_selected else None
        return found[selected]

    def _costs(self, method: Method[Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the run's cost as metrics, and the cost by phase and rank; collective."""
        cost = self._cost_tracker.state() | {"peak_memory_bytes": peak_memory_per_rank()}
        return {
            "gradient_evaluations": float(self._cost_tracker.gradient_evaluations),
            "tokens": float(self._cost_tracker.tokens),
            "seconds": sum(self._cost_tracker.seconds.values()),
            "peak_memory_bytes": float(max(max(peaks.values()) for peaks in cost["peak_memory_bytes"])),
            "outer_steps_taken": float(method.steps_taken),
            **({} if self._selected_round is None else {"selected_round": float(self._selected_round)}),
        }, cost

    def _robustness(self, engine: Engine, task: Task[Any], metrics: Metrics) -> dict[str, RobustnessResult]:
        """Return what the config asks for beside the scores, on every rank, and count its cost; collective."""
        if not isinstance(task, RobustnessTask):
            return {}
        model, reference, retrained = self._files.model, self._prepared.reference_scores, self._prepared.retrain
        with self._cost_tracker.phase("evaluation"):
            measured = task.measure(engine)
            parts = on_rank_0(lambda: measured | task.attack(model, metrics, reference, retrained))
        for part in parts.values():
            self._cost_tracker.gradient_evaluations += part.gradient_evaluations
            self._cost_tracker.tokens += part.tokens
        return parts

    def _save_model(self, engine: Engine, task: Task[Any]) -> None:
        """Save the masters in the form that ``from_pretrained`` loads; collective."""
        model, directory = engine.model, self._files.model
        save_on_rank_0(engine.space, task.saved_dtype, lambda weights: task.save(model, directory, weights))

    def _finish(self, engine: Engine, method: Method[Any], task: Task[Any], scores: Any) -> UnlearnResult:
        metrics = task.metrics(scores, self._prepared.reference_scores)
        parts = self._robustness(engine, task, metrics)
        metrics = with_robustness(metrics, parts)
        costs, cost = self._costs(method)
        values = metrics.values | costs

        def write() -> None:
            scores.save(self._files.scores)
            self._files.write_report(
                metrics.to_json()
                | {
                    **{name: part.details for name, part in parts.items()},
                    "metrics": values,
                    "cost": cost,
                    "stationary": method.stationary,
                    "learning_rates": method.learning_rates,
                    "seed": self._config.seed,
                    "data_hash": task.content_hash,
                    **retain_rows_entry(task, self._config.method),
                    "prepared": dict(self._prepared.keys),
                    "config": self._config.model_dump(mode="json"),
                    "environment": environment(),
                }
            )

        on_rank_0(write)
        return UnlearnResult(values, metrics.reasons, self._files.directory)


def _complete_run(directory: Path) -> UnlearnResult | None:
    """Return the result of a complete run; None for a new run or an interrupted one."""
    files = RunFiles(directory)
    report = files.read_report()
    with stored_values(files.metrics):
        return None if report is None else UnlearnResult(dict(report["metrics"]), dict(report["reasons"]), directory)
