"""AltPO: the model learns to prefer a plausible answer with other facts to the forget answer."""

from __future__ import annotations

from typing import ClassVar, Literal

from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.dpo import DPO, DpoConfig
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE


class AltpoConfig(DpoConfig):
    """The settings of AltPO. The forget loss is that of DPO."""

    name: Literal["altpo"] = "altpo"  # type: ignore[assignment]
    """Selects AltPO."""


@register("altpo")
class AltPO(DPO):
    """L_forget = −(2/b) log σ(b [(nll_0 − nll)(alternate) − (nll_0 − nll)(answer)]), nll_0 the target's.

    The alternate of a row is its ``alternate_answer`` where the data has one. Otherwise the target writes it before the
    first step: asked for an answer with other facts, the target samples at temperature 1. The paper trains on several
    alternates per row; here each row has one, which does not change during the run.
    """

    Config = AltpoConfig
    title = "AltPO"
    source = "Mekala et al., arXiv 2409.13474, section 3; settings of open-unlearning's community run"
    space: ClassVar = SINGLE_LOOP_SPACE | {"beta": {"low": 0.03, "high": 1.0, "log": True}}
    published: ClassVar = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0}

    def preferred_rows(self) -> list[Example]:
        """Return one row per forget row: its question, and the alternate answer; collective."""
        return self.task.alternates(self.engine)
