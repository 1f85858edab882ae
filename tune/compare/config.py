"""The config of a comparison: a search's config and the section ``compare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ofmu.config.base import NonNegativeInt, PositiveInt, Section
from tune.config import SearchConfig
from tune.space.parameter import flatten_space

Share = Annotated[float, Field(gt=0, le=1)]


class CompareOptions(Section):
    """The methods to compare, the cost of each, and the levels at which they are compared."""

    methods: tuple[str, ...] = ()
    """Names of methods in ``ofmu.methods``, or of methods that ``method.module`` registers. A variant of a method is
    named as in ``ofmu@first_order``."""
    seeds: PositiveInt = 3
    """Number of seeds on which each chosen point of a front runs again. These are the seeds after the config's own
    seed. On the config's own seed the points were chosen, so there they look better than they are."""
    points: PositiveInt = 5
    """Largest number of points of a front that run again. The chosen points cover the most hypervolume together."""
    retain_draws: NonNegativeInt = 0
    """Number of draws of the retain rows on which each chosen point runs again, all at the first of the seeds. The
    table then shows how much of a result comes from which retain rows were used. 0: all runs use all retain rows."""
    retain_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the retain rows in each draw."""
    budget: Literal["trials", "evaluations"] | PositiveInt = "trials"
    """``trials``: search.num_trials for every method. ``evaluations``: as many gradient evaluations as these trials
    cost OFMU (without OFMU, the first method). A number: this many gradient evaluations."""
    forgetting_levels: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """Levels of forgetting at which utility is compared: fractions of the first objective's way from the untouched
    target to the retrained reference. Without a reference, the way ends at the best value of any method."""
    utility_levels: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.8, 0.9, 0.95)
    """Levels of utility at which forgetting is compared: fractions of the second objective's way from its worst value
    to the target's value."""
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """A method is marked as best if every comparison with another method has a corrected p below this value."""
    space: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Ranges, in the form of ``search.space``. They replace the ranges of every method that searches the setting. The
    method of the config's section ``method`` keeps its ``search.space``."""
    spaces: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """The same for one method, by the method's name. These ranges may add settings to the method's space."""

    @field_validator("methods", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("space", mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        return flatten_space(value) if isinstance(value, Mapping) else value

    @field_validator("spaces", mode="before")
    @classmethod
    def _flatten_each(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: cls._flatten(space or {}) for name, space in value.items()}


class CompareConfig(SearchConfig):
    """A whole comparison: the config that all searches share, and the section ``compare``."""

    compare: CompareOptions = CompareOptions()
