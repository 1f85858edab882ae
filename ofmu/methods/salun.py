"""SalUn: random labelling of the salient weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ofmu.methods import register
from ofmu.methods.randomlabels import RandomLabels, RandomLabelsConfig
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE


class SalUnConfig(RandomLabelsConfig):
    """The settings of SalUn."""

    name: Literal["salun"] = "salun"  # type: ignore[assignment]
    """Selects SalUn."""
    saliency_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the weights that a run may change: those with the largest |∇L_f| at the target."""


@register("salun")
class SalUn(RandomLabels):
    """Random labelling in which only the ``saliency_fraction`` of weights with the largest |∇L_f(θ_0)| change.

    Every method accepts the setting ``saliency_fraction``: :mod:`ofmu.methods.saliency`.
    """

    Config = SalUnConfig
    title = "SalUn"
    source = "Fan et al., arXiv 2310.12508, section 4"
    space: ClassVar[dict[str, Any]] = SINGLE_LOOP_SPACE | {"saliency_fraction": {"low": 0.1, "high": 0.9}}
    published: ClassVar = {"lr": 0.013, "update": "sgd", "saliency_fraction": 0.5}
