"""The ``compare`` section of a config file: which methods, how much of each, and where they are held to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ofmu.config.base import PositiveInt, Section

Share = Annotated[float, Field(gt=0, le=1)]


class CompareSettings(Section):
    """What a comparison adds to the search that every method gets."""

    methods: tuple[str, ...] = ()
    """Names of ``ofmu.methods``, or of those that ``method.module`` registers."""
    seeds: PositiveInt = 3
    """How often each chosen point of a front is run again: with the seeds that follow the config's own, since on
    that one the points were chosen and look better than they are."""
    points: PositiveInt = 5
    """At most so many points of a front are run again: those whose union covers the most hypervolume."""
    budget: Literal["trials", "evaluations"] | PositiveInt = "trials"
    """``trials``: search.num_trials for every method; ``evaluations``: as many gradient evaluations as so many trials
    cost OFMU (or, without it, the first method); a number: so many gradient evaluations."""
    forgetting_levels: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """Where utility is compared: parts of the way that the first objective has from the untouched target to the
    retrained reference; without one, to the best value that any method reached."""
    utility_levels: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.8, 0.9, 0.95)
    """Where forgetting is compared: shares of the second objective's way from its worst value to the target's."""
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """A method is marked as best only where every comparison with another has a corrected p below this."""
    space: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Ranges, in the form of ``search.space``, that replace those of any method that searches the setting; the method
    of the config's own ``method`` section keeps its ``search.space``."""
    spaces: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """The same for one method, by its name; these may add settings to what the method searches."""

    @field_validator("methods", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("space", mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        # Here, since tune.config holds this section as one of its own.
        from tune.config import flatten_space

        return flatten_space(value) if isinstance(value, Mapping) else value

    @field_validator("spaces", mode="before")
    @classmethod
    def _flatten_each(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: cls._flatten(space or {}) for name, space in value.items()}
