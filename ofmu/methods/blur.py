"""BLUR: a step follows the part of the retain gradient that is orthogonal to the forget gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from ofmu.config.base import NonNegativeFloat
from ofmu.methods import register
from ofmu.methods.npo import NPO, NpoConfig
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, Direction
from ofmu.vectors.held import HeldVectors, Passes


class BlurConfig(NpoConfig):
    """The settings of BLUR. The forget loss is that of NPO."""

    own_direction: ClassVar[bool] = True
    name: Literal["blur"] = "blur"  # type: ignore[assignment]
    """Selects BLUR."""
    forget_weight: NonNegativeFloat = 1.0
    """γ, the weight of L_forget. At 0, L_forget is computed all the same, since the retain part is orthogonal to its
    gradient."""


@register("blur")
class BLUR(NPO):
    """θ ← θ − η (γ g_f + α (g_r − g_f <g_f, g_r>/‖g_f‖²)), g_f of the NPO loss.

    Forgetting is the lower level of a bilevel problem and has priority. To first order, the retain part of the step
    does not change L_forget. As in the authors' code, the projection does not depend on the sign of <g_f, g_r>.
    """

    Config = BlurConfig
    title = "BLUR"
    source = "Reisizadeh et al., arXiv 2506.08164; direction and γ of the authors' code (BLO_forget_lower)"
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "beta": {"low": 0.03, "high": 1.0, "log": True},
        "forget_weight": {"low": 0.1, "high": 3.0, "log": True},
    }
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 1.0}

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return the vectors of one loop; the direction is made from g_f and g_r, if g_r has a weight."""
        held = super().held_vectors(config)
        return replace(held, in_pass=2, between=3) if config.retain_weight > 0 else held

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return the passes of one loop. The retain part needs g_f, whatever the weight of g_f."""
        least, most = super().passes(config, forget_rows, retain_rows)
        if config.retain_weight == 0:
            return least, most
        return replace(least, forget=config.steps), replace(most, forget=config.steps)

    def direction(self) -> Direction:
        """Return γ g_f + α (g_r − c g_f) with c = <g_f, g_r>/‖g_f‖²."""
        engine, space = self.engine, self.engine.space
        gamma, alpha = self.weights()
        if alpha == 0:
            return super().direction()
        rows = self._forget_sampler.draw()
        forget_loss, g_f = engine.gradient(self.forget_loss(rows), rows)
        rows = self._retain_sampler.draw()
        retain_loss, g_r = engine.gradient(self.retain_loss(rows), rows)
        ff, fr = space.dots((g_f, g_f), (g_f, g_r))
        c = fr / ff if ff > 0 else 0.0
        return Direction(space.combine((gamma - alpha * c, g_f), (alpha, g_r)), forget_loss, retain_loss)
