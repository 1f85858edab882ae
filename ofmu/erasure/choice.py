"""The rule that picks one trial of a search for an erasure: first the bound on utility, then forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["min", "max"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial as the rule sees it."""

    trial: int
    forgetting: float
    utility: float
    runs: int = 0
    """Runs on further seeds whose mean the values are. 0: the values are those on the seed of the search."""


@dataclass(frozen=True, kw_only=True)
class ChoiceRule:
    """Among the trials with enough utility, take the one that forgets most.

    Ties go to the higher utility, then to the earlier trial.
    """

    forgetting: str
    """Name of the first objective."""
    direction: Direction
    """The better direction of the first objective."""
    utility: str
    """Name of the second objective, which is better when higher."""
    min_share: float
    """Least utility, as a share of the target's."""
    target_forgetting: float
    """The first objective of the untouched target."""
    target_utility: float
    """The second objective of the untouched target. In a chain: of the first target."""
    in_chain: bool = False
    """Whether utility is compared with the first target of a chain."""

    @property
    def whose(self) -> str:
        """Whose utility the bound is a share of."""
        return "the first target's" if self.in_chain else "the target's"

    @property
    def min_utility(self) -> float:
        """The bound in the unit of the utility."""
        return self.min_share * self.target_utility

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"{self.min_utility:.4g} ({self.min_share:.0%} of {self.whose} {self.target_utility:.4g})"

    @property
    def sentence(self) -> str:
        """The rule in words."""
        way = "lowest" if self.direction == "min" else "highest"
        return (
            f"Among the trials whose {self.utility} is at least {self.bound} and that forget more than the target, "
            f"the trial with the {way} {self.forgetting}"
        )

    def allows(self, candidate: Candidate) -> bool:
        """Return whether a trial has enough utility and forgets more than the target."""
        return candidate.utility >= self.min_utility and self.forgets_more(candidate)

    def forgets_more(self, candidate: Candidate) -> bool:
        """Return whether a trial forgets more than the target."""
        gain = self.target_forgetting - candidate.forgetting
        return (gain if self.direction == "min" else -gain) > 0

    def ordered(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the trials from the best to the worst. Trials that the rule does not allow come last."""
        sign = 1.0 if self.direction == "min" else -1.0
        return sorted(
            candidates,
            key=lambda each: (not self.allows(each), sign * each.forgetting, -each.utility, each.trial),
        )
