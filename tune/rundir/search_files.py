"""Names of the files in a search's directory, and the record in ``search.json``.

A trial's own files are in :mod:`tune.rundir.trial_files`; ``config.yaml`` and ``environment.json`` are named as in
:mod:`ofmu.run_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pydantic import TypeAdapter

from tune.space.objectives import Direction

STUDY = "study.log"
TRIALS_TABLE = "trials.csv"
FRONT_TABLE = "front.csv"
FRONT_PLOT = "front.png"
SUMMARY = "search.json"
REFERENCE = "reference.json"
RUNGS = "rungs.jsonl"
ROUNDS = "rounds.jsonl"
WARM_START = "warm_start.json"
CONFIRMATION = "confirmation.json"
CONFIRMATION_RUNS = "confirmation"
TRIALS = "trials"
TUNE_STORAGE = "ray"

_OF_CONSTRAINTS = ("feasible", "nearest", "limits")


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """What ``search.json`` holds."""

    complete: int
    failed: int
    pruned: int
    asked: int
    """``search.num_trials``."""
    seconds: float
    """Seconds of search, over all sessions."""
    objectives: Mapping[str, Direction]
    hypervolume: float
    hypervolume_reference: Mapping[str, float]
    """The reference point of the hypervolume, in the objectives' own directions."""
    front: list[int]
    """Numbers of the front's trials, by the first objective."""
    knee: int | None
    """Number of the knee's trial; None without a front, or if no trial keeps all constraints."""
    feasible: int | None = None
    """Number of complete trials that keep all constraints; None for a search without constraints."""
    nearest: int | None = None
    """Number of the trial nearest to the constraints if no trial keeps all of them."""
    limits: list[str] = field(default_factory=list)
    """The bounds of the constraints as numbers, such as ``model_utility ≥ 0.714``."""
    is_over: bool | None = None
    """Whether the search needed no further trial; None in the file of an older version."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values. What only a search with constraints has is left out of any other."""
        values = asdict(self)
        return {key: value for key, value in values.items() if self.feasible is not None or key not in _OF_CONSTRAINTS}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the summary that :meth:`to_json` wrote.

        Raises:
            ValueError: a key is missing, or a value has the wrong type.
        """
        return TypeAdapter(cls).validate_python(values)
