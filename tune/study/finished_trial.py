"""A finished trial, as callbacks and ask/tell loops get it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tune.space.constraints import stored_violations, total_violation
from tune.study.baselines import SAMPLED

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig

FinishedState = Literal["complete", "failed", "pruned"]

_STATES: dict[str, FinishedState] = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A trial that is complete, failed or pruned."""

    number: int
    state: FinishedState
    role: str
    """``target`` or ``published`` for the two baselines, else ``sampled``."""
    settings: dict[str, Any]
    """What the trial sets, by dotted config key."""
    objectives: dict[str, float]
    """The objectives in the config's order. Empty unless the trial is complete."""
    metrics: dict[str, float | None]
    """All metrics that the trial reported, with its cost. None stands for a value that is not finite."""
    directory: Path
    reason: str | None
    """Why the trial failed or was pruned."""
    violations: dict[str, float] = field(default_factory=dict)
    """How far a complete trial violates each bound of ``search.constraints``, by names such as ``model_utility:min``.
    At most 0: the trial keeps the bound."""

    @property
    def is_feasible(self) -> bool:
        """Whether the trial is complete and keeps all constraints."""
        return self.state == "complete" and total_violation(self.violations) == 0


def finished_trial(trial: FrozenTrial, config: SearchConfig, directory: Path) -> FinishedTrial:
    """Return a finished trial of the study.

    Raises:
        ValueError: the trial has not finished.
    """
    if trial.state.name not in _STATES:
        raise ValueError(f"Trial {trial.number} has not finished: it is {trial.state.name}")
    attributes = trial.user_attrs
    return FinishedTrial(
        number=trial.number,
        state=_STATES[trial.state.name],
        role=attributes.get("role", SAMPLED),
        settings=dict(attributes.get("overrides", {})),
        objectives=dict(zip(config.objectives, trial.values or (), strict=False)),
        metrics=dict(attributes.get("metrics", {})),
        directory=directory,
        reason=attributes.get("reason"),
        violations=stored_violations(trial.system_attrs),
    )
