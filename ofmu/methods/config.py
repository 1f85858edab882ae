"""The settings that every method shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ofmu.config.base import PositiveInt, Section, Seed
from ofmu.engine.config import EngineConfig


def with_variant(name: str, variant: str | None) -> str:
    """Return a method and its variant as one name, such as ``ofmu@first_order``."""
    return f"{name}@{variant}" if variant else name


class MethodConfig(Section):
    """The settings that every method shares. Each method adds its own settings in its file under ``ofmu/methods``."""

    added_later: ClassVar[frozenset[str]] = frozenset(("group_by_length",))

    draws_minibatches: ClassVar[bool] = True
    """Whether a step reads minibatches, and not all rows."""

    name: str = "ofmu"
    """A built-in method, or a method that ``module`` registers."""
    module: str | None = None
    """Importable module of the user that registers ``name``."""
    batch_size: PositiveInt = 8
    """Rows of D_f, and of D_r, in one global minibatch. The number does not depend on the number of ranks."""
    group_by_length: bool = False
    """True: rows of similar length share a minibatch, so that little of it is padding. Some minibatches are then
    smaller than ``batch_size``. False: the rows of a minibatch are drawn at random. Images have no length."""
    seed: Seed | None = None
    """Seed of the run's minibatches. Runs with different seeds start from the same target. None: the config's seed."""
    saliency_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the weights that a run may change: those with the largest |∇L_f| at the target (the mask of SalUn, for
    any method). The other weights keep their bits. 1: all weights."""
    retain_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the retain rows that the method may use. The target, the reference and the evaluation use all of them,
    whatever the share is."""
    retain_draw: Seed = 0
    """Seed of the draw of ``retain_share``. One draw gives the same rows to every method and to every seed."""

    @classmethod
    def defaults_at(cls, precision: str) -> Mapping[str, Any]:
        """Return the settings whose default depends on ``engine.precision``, with their defaults there."""
        return {}

    @property
    def needs_double_backward(self) -> bool:
        """Whether the method takes second derivatives by double backward, which fused attention lacks."""
        return False

    @property
    def label(self) -> str:
        """The name, and the variant if there is one, as in ``ofmu@first_order``."""
        return with_variant(self.name, getattr(self, "variant", None))

    def check(self, engine: EngineConfig, attention: str) -> None:
        """Check the method's settings against the engine and against ``model.attention``.

        Raises:
            ValueError: the settings cannot work together. The message is one sentence.
        """

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = []
        if self.retain_share == 1 and self.retain_draw != 0:
            notes.append("method.retain_draw has no effect: method.retain_share is 1")
        if self.group_by_length and not self.draws_minibatches:
            notes.append(f"method.group_by_length has no effect: {self.name} draws no minibatches")
        return notes

    def cautions(self) -> list[str]:
        """Return one sentence, with the fix, for every choice of settings that is likely to spoil the result."""
        return []
