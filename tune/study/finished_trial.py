"""One trial that has ended, as callbacks and ask/tell loops hear of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tune.study.baselines import SEARCHED

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig

EndState = Literal["complete", "failed", "pruned"]

_STATES: dict[str, EndState] = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """How one trial ended."""

    number: int
    state: EndState
    role: str
    """``target`` and ``paper`` for the two landmarks, else ``searched``."""
    settings: dict[str, Any]
    """What the trial set, by dotted config key."""
    objectives: dict[str, float]
    """Their values, in the config's order; empty unless the trial is complete."""
    metrics: dict[str, float | None]
    """All that was reported, cost included; None for what was not a finite number."""
    directory: Path
    reason: str | None
    """Why the trial failed or was pruned."""


def ended_trial(trial: FrozenTrial, config: SearchConfig, directory: Path) -> EndedTrial:
    """Return what is told of a finished trial of the study.

    Raises:
        ValueError: the trial has not ended.
    """
    if trial.state.name not in _STATES:
        raise ValueError(f"Trial {trial.number} has not ended: it is {trial.state.name}")
    attributes = trial.user_attrs
    return EndedTrial(
        number=trial.number,
        state=_STATES[trial.state.name],
        role=attributes.get("role", SEARCHED),
        settings=dict(attributes.get("overrides", {})),
        objectives=dict(zip(config.objectives, trial.values or (), strict=False)),
        metrics=dict(attributes.get("metrics", {})),
        directory=directory,
        reason=attributes.get("reason"),
    )
