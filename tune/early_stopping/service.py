"""Early stopping in a running search: every trial's judge, and the one scheduler that all of them ask."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ofmu.errors import DataError, PrunedError, PruningRecord, StorageError
from ofmu.io.files import storage_errors, write_text
from tune.early_stopping.rungs import Report, RungScheduler, RungSettings
from tune.space.objectives import Direction

if TYPE_CHECKING:
    from ofmu.early_stopping import RoundState
    from ofmu.evaluation.scoring.partial import PartialEvaluation

STAND_INS = {"forget_rouge": "forget_probability", "retain_rouge": "retain_probability"}
"""What is looked at on the way in place of an objective that needs generated text."""

Values = Mapping[str, float | None]


class RungBook:
    """The scheduler of one search, whose reports lie in a file: whoever opens the file again goes on alike.

    A report is on disk before it is answered. Decisions are a function of the reports and their order, so those are
    all that is stored, one JSON line each; a line that a kill cut off was never answered, and is dropped.

    Raises:
        DataError: the file holds something else.
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, directions: Mapping[str, Direction], settings: RungSettings) -> None:
        self._path = path
        self._broken: StorageError | None = None
        reports = self._read()
        self._scheduler = RungScheduler(directions, settings)
        self._verdicts: dict[tuple[int | str, int], bool] = {}
        for report in reports:
            self._decide(report)

    def stops(self, trial: int, round: int, total: int, values: Values) -> bool:
        """Return whether the trial ends after this round; a round told again gets the answer it was given.

        Raises:
            StorageError: the report cannot be stored, or one before it could not.
        """
        told = self._verdicts.get((trial, round))
        if told is not None:
            return told
        report = Report(trial, round, total, dict(values))
        self._append({"trial": trial, "round": round, "total": total, "values": dict(values)})
        return self._decide(report)

    def _append(self, line: Mapping[str, Any]) -> None:
        """Write one line; after a failure none is written behind the half that may stand there."""
        if self._broken is not None:
            raise self._broken
        try:
            with storage_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, allow_nan=False) + "\n")
        except StorageError as error:
            self._broken = error
            raise

    def _decide(self, report: Report) -> bool:
        verdict = self._scheduler.report(report.trial, report.round, report.values, report.total)
        self._verdicts[report.trial, report.round] = verdict == "stop"
        return verdict == "stop"

    def _read(self) -> list[Report]:
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding="utf-8")
        whole, _, cut_off = text.rpartition("\n")
        if cut_off:
            write_text(self._path, whole + "\n" if whole else "")
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            return [Report(line["trial"], line["round"], line["total"], line["values"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._path} is malformed ({error}): delete it to judge from here on anew") from error


class Asked(Protocol):
    """What a trial's judge puts its question to."""

    def stops(self, trial: int, round: int, total: int, values: Values) -> bool:
        """Return whether the trial ends after this round."""


class RungOffice:
    """A :class:`RungBook` in a process of its own, which all trials of a search reach."""

    def __init__(self, path: str, directions: Mapping[str, Direction], settings: Mapping[str, Any]) -> None:
        self._book = RungBook(Path(path), directions, RungSettings.model_validate(settings))

    def answer(self, trial: int, round: int, total: int, values: Values) -> bool | str:
        """Return whether the trial ends, or the sentence of a write that the disk refused."""
        try:
            return self._book.stops(trial, round, total, values)
        except StorageError as error:
            return str(error)


@dataclass(frozen=True)
class RemoteBook:
    """A :class:`RungOffice` seen from a trial's process."""

    office: Any
    """The actor's handle."""

    def stops(self, trial: int, round: int, total: int, values: Values) -> bool:
        """Return whether the trial ends after this round.

        Raises:
            StorageError: the report could not be stored.
        """
        answer = ray.get(self.office.answer.remote(trial, round, total, dict(values)))
        if isinstance(answer, str):
            raise StorageError(answer)
        return bool(answer)


def open_office(path: Path, directions: Mapping[str, Direction], settings: RungSettings) -> Any:
    """Start the process that all trials ask, on this node and without a share of its CPUs; return its handle.

    If it dies it is started again, and reads its reports from ``path``.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(RungOffice)
    return remote.remote(str(path), dict(directions), settings.model_dump(mode="json"))


@dataclass(frozen=True)
class Judging:
    """How the trials of one search are judged: the settings, what is optimised, and whom they ask."""

    settings: RungSettings
    objectives: tuple[str, ...]
    book: Asked

    def of(self, trial: int) -> TrialJudge:
        """Return the judge of one trial."""
        return TrialJudge(self, trial)


class TrialJudge:
    """Judges one trial where it meets a rung: a sketch of its evaluation, put to the search's scheduler.

    With several ranks, all score together, rank 0 asks, and all hear the same answer.
    """

    def __init__(self, judging: Judging, trial: int) -> None:
        self._judging, self._trial = judging, trial
        self._sketch: PartialEvaluation | None = None

    def __call__(self, standing: RoundState) -> None:
        """Do nothing between rungs.

        Raises:
            PrunedError: the scheduler stops the trial.
            StorageError: the report could not be stored.
        """
        settings = self._judging.settings
        if standing.round not in settings.judged_rounds(standing.total):
            return
        values = intermediate_values(self._judging.objectives, self._metrics(standing), standing.record)
        answer = self._ask(standing, values)
        if isinstance(answer, str):
            raise StorageError(answer)
        if answer:
            level = max(level for level in settings.levels if standing.round >= level * standing.total - 1e-9)
            record = PruningRecord(round=standing.round, total=standing.total, rung=level, objectives=values)
            raise PrunedError(record)

    def _metrics(self, standing: RoundState) -> dict[str, float | None]:
        from ofmu.engine.cost import peak_memory_per_rank
        from ofmu.tasks.language.task import LanguageTask

        if not isinstance(standing.task, LanguageTask):
            raise TypeError("only language models are judged on their way")
        if self._sketch is None:
            self._sketch = standing.task.partial_evaluation(self._judging.settings.rows)
        found = self._sketch.metrics(standing.engine, standing.reference_scores).values
        peak = max(max(peaks.values()) for peaks in peak_memory_per_rank())
        return {**found, "peak_memory_bytes": float(peak)}

    def _ask(self, standing: RoundState, values: Values) -> bool | str:
        answer: list[bool | str | None] = [None]
        if standing.engine.rank == 0:
            try:
                answer = [self._judging.book.stops(self._trial, standing.round, standing.total, values)]
            except StorageError as error:
                # the others wait for an answer, and are to end alike
                answer = [str(error)]
        if standing.engine.world_size > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(answer, src=0)
        return answer[0] if answer[0] is not None else False


def intermediate_values(
    objectives: tuple[str, ...], metrics: Mapping[str, float | None], record: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return the objectives as they stand after a round: None where one is missing or not finite.

    Costs are those so far, from the round's ``record``; what needs generation has a stand-in, see :data:`STAND_INS`.
    """
    found = {**record, **metrics}
    values = {}
    for name in objectives:
        value = found.get(STAND_INS.get(name, name))
        values[name] = float(value) if value is not None and math.isfinite(value) else None
    return values
