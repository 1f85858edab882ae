"""SalUn: random labelling of the salient weights alone."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ofmu.methods import register
from ofmu.methods.randomlabels import RandomLabels, RandomLabelsConfig
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE


class SalunConfig(RandomLabelsConfig):
    """SalUn's settings."""

    name: Literal["salun"] = "salun"  # type: ignore[assignment]
    saliency_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5


@register("salun")
class Salun(RandomLabels):
    """Random labelling in which only the ``saliency_fraction`` of weights with the largest |∇L_f(θ_0)| move.

    Every method takes the same mask by its own ``saliency_fraction``: see :mod:`ofmu.methods.saliency`.
    """

    Config = SalunConfig
    title = "SalUn"
    source = "Fan et al., arXiv 2310.12508, section 4"
    space: ClassVar[dict[str, Any]] = SINGLE_LOOP_SPACE | {"saliency_fraction": {"low": 0.1, "high": 0.9}}
    published: ClassVar = {"lr": 0.013, "update": "sgd", "saliency_fraction": 0.5}
