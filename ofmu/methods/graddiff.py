"""Gradient difference: ascent on the forget rows and descent on the retain rows."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

from ofmu.methods import register
from ofmu.methods.gradascent import GradAscent
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig

RowT = TypeVar("RowT")


class GradDiffConfig(SingleLoopConfig):
    """The settings of gradient difference."""

    name: Literal["graddiff"] = "graddiff"
    """Selects gradient difference."""


@register("graddiff")
class GradDiff(GradAscent[RowT]):
    """L = −γL_f + αL_r."""

    Config = GradDiffConfig
    title = "GradDiff"
    source = "Liu et al., arXiv 2203.12817; Maini et al. (TOFU), arXiv 2401.06121, section 3.3"
    space: ClassVar = SINGLE_LOOP_SPACE
