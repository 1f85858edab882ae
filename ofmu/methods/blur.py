"""BLUR: of the retain gradient, only what is orthogonal to the forget gradient is followed."""

from __future__ import annotations

from typing import ClassVar, Literal

from ofmu.methods import register
from ofmu.methods.npo import NPO, NpoConfig
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, Direction


class BlurConfig(NpoConfig):
    """BLUR's settings; the forget loss is NPO's."""

    name: Literal["blur"] = "blur"  # type: ignore[assignment]


@register("blur")
class BLUR(NPO):
    """θ ← θ − η (γ g_f + α (g_r − g_f <g_f, g_r>/‖g_f‖²)), g_f of the NPO loss.

    Forgetting is the lower level of a bilevel problem and has priority: to first order, the retain part changes
    L_f in no direction. The projection takes place whatever the sign of <g_f, g_r>, as in the authors' code.
    """

    Config = BlurConfig
    title = "BLUR"
    source = "Reisizadeh et al., arXiv 2506.08164; direction of the authors' code (BLO_forget_lower, γ as there)"
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "beta": {"low": 0.03, "high": 1.0, "log": True},
        "forget_weight": {"low": 0.1, "high": 3.0, "log": True},
    }
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 1.0}

    def direction(self) -> Direction:
        """Return γ g_f + α (g_r − c g_f), c = <g_f, g_r>/‖g_f‖²; both gradients are evaluated once."""
        engine, space = self.engine, self.engine.space
        gamma, alpha = self.weights()
        if alpha == 0:
            return super().direction()
        rows = self._forget_sampler.draw()
        forget, g_f = engine.gradient(self.forget_loss(rows), rows)
        rows = self._retain_sampler.draw()
        retain, g_r = engine.gradient(self.retain_loss(rows), rows)
        ff, fr = space.dots((g_f, g_f), (g_f, g_r))
        shared = fr / ff if ff > 0 else 0.0
        return Direction(space.combine((gamma - alpha * shared, g_f), (alpha, g_r)), forget, retain)
