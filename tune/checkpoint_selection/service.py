"""The archive of a running search: its log on disk, the Ray actor that owns it, and the client that a trial calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from ofmu.config.base import PositiveInt
from tune.checkpoint_selection.archive import RoundArchive, Scored, Verdict
from tune.early_stopping.actor import answer_of, or_sentence, start_actor
from tune.early_stopping.report_log import LogLine, ReportLog, RoundLine
from tune.space.objectives import Direction


class ScoredRoundLine(RoundLine):
    """The scores of one of a trial's rounds."""

    violation: float


class SelectionLine(LogLine):
    """The rounds from which a trial selects at its end."""

    candidates: Annotated[dict[PositiveInt, Scored], Field(min_length=1)]


_LINE: TypeAdapter[ScoredRoundLine | SelectionLine] = TypeAdapter(ScoredRoundLine | SelectionLine)


class PersistentRoundArchive:
    """A :class:`RoundArchive` that stores its calls in a file. A new object on the same file continues alike.

    A repeated call, such as after a restart from a checkpoint, gets the same answer again and changes nothing.

    Args:
        path: the file.
        objectives: the objectives with their directions.
        stop_margin: see :class:`tune.checkpoint_selection.config.CheckpointSelectionConfig`.
        shown: the file's name in a message; None: ``path``.

    Raises:
        DataError: the file holds something else.
        StorageError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        objectives: Mapping[str, Direction],
        stop_margin: float | None,
        shown: str | None = None,
    ) -> None:
        self._log = ReportLog(path, _LINE, "checkpoint selection", shown)
        self._archive = RoundArchive(objectives, stop_margin)
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self._selected: dict[int, int] = {}
        for line in self._log.read():
            if isinstance(line, SelectionLine):
                self._select(line.trial, line.candidates)
            else:
                self._report(line.trial, line.round, line.total, Scored(line.values, line.violation))

    def report(self, trial: int, round: int, total: int, scored: Scored) -> Verdict:
        """Return what a trial does after a round.

        Raises:
            StorageError: this call or an earlier call could not be stored.
        """
        if (trial, round) not in self._verdicts:
            self._log.append({"trial": trial, "round": round, "total": total} | _to_json(scored))
            self._report(trial, round, total, scored)
        return self._verdicts[trial, round]

    def select(self, trial: int, candidates: Mapping[int, Scored]) -> int:
        """Return the round for which a trial stands.

        Raises:
            StorageError: this call or an earlier call could not be stored.
        """
        if trial not in self._selected:
            named = {str(round): _to_json(each) for round, each in candidates.items()}
            self._log.append({"trial": trial, "candidates": named})
            self._select(trial, candidates)
        return self._selected[trial]

    def _report(self, trial: int, round: int, total: int, scored: Scored) -> None:
        self._verdicts[trial, round] = self._archive.report(trial, round, total, scored)

    def _select(self, trial: int, candidates: Mapping[int, Scored]) -> None:
        self._selected[trial] = self._archive.select(trial, candidates)


def _to_json(scored: Scored) -> dict[str, Any]:
    return {"values": dict(scored.values), "violation": scored.violation}


class RoundArchiveActor:
    """A :class:`PersistentRoundArchive` in its own process. All trials of a search call it."""

    def __init__(self, path: str, objectives: Mapping[str, Direction], stop_margin: float | None) -> None:
        self._archive = PersistentRoundArchive(Path(path), objectives, stop_margin)

    def report(self, trial: int, round: int, total: int, scored: Scored) -> Verdict | str:
        """Return what a trial does after a round, or the sentence of a failed write."""
        return or_sentence(lambda: self._archive.report(trial, round, total, scored))

    def select(self, trial: int, candidates: Mapping[int, Scored]) -> int | str:
        """Return the round for which a trial stands, or the sentence of a failed write."""
        return or_sentence(lambda: self._archive.select(trial, candidates))


@dataclass(frozen=True)
class RoundArchiveClient:
    """Calls a :class:`RoundArchiveActor` from a trial's process."""

    actor: Any
    """The actor's handle."""

    def report(self, trial: int, round: int, total: int, scored: Scored) -> Verdict:
        """Return what a trial does after a round.

        Raises:
            StorageError: the call could not be stored.
        """
        verdict: Verdict = answer_of(self.actor.report.remote(trial, round, total, scored))
        return verdict

    def select(self, trial: int, candidates: Mapping[int, Scored]) -> int:
        """Return the round for which a trial stands.

        Raises:
            StorageError: the call could not be stored.
        """
        return int(answer_of(self.actor.select.remote(trial, dict(candidates))))


def start_archive_actor(path: Path, objectives: Mapping[str, Direction], stop_margin: float | None) -> Any:
    """Start the actor of a search on this node. Return the actor's handle."""
    return start_actor(RoundArchiveActor, str(path), dict(objectives), stop_margin)
