"""The similarity S = cos(g_f, g_r) of the forget and the retain gradient, and the derivatives of S.

The derivatives lie in the span of g_f, g_r and the derivatives of g_f and g_r. This file returns the coefficients. The
caller forms the vectors, each of which is as large as the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

Coefficients2: TypeAlias = tuple[float, float]
"""Coefficients on (g_f, g_r)."""
Coefficients4: TypeAlias = tuple[float, float, float, float]
"""Coefficients on (g_f, g_r, ġ_f, ġ_r), where the dot is the derivative along a direction v."""


@dataclass(frozen=True)
class Similarity:
    """S = cos(g_f, g_r) with the norms of both gradients.

    With ĝ = g/‖g‖, the derivatives of S are

        a = ∂S/∂g_f = (ĝ_r − S ĝ_f)/‖g_f‖
        b = ∂S/∂g_r = (ĝ_f − S ĝ_r)/‖g_r‖.
    """

    forget_norm: float
    """‖g_f‖"""
    retain_norm: float
    """‖g_r‖"""
    value: float
    """S. The value is 0 if a gradient vanishes, where S is undefined."""

    @staticmethod
    def from_dot(forget_norm: float, retain_norm: float, dot: float) -> Similarity:
        """Return S from ‖g_f‖, ‖g_r‖ and <g_f, g_r>."""
        size = forget_norm * retain_norm
        return Similarity(forget_norm, retain_norm, max(-1.0, min(1.0, dot / size)) if size > 0 else 0.0)

    @property
    def is_defined(self) -> bool:
        """Whether neither gradient vanishes."""
        return self.forget_norm > 0 and self.retain_norm > 0

    @property
    def a_norm(self) -> float:
        """‖a‖ = sin(g_f, g_r)/‖g_f‖. No further inner product is needed."""
        return self._sine / self.forget_norm

    @property
    def b_norm(self) -> float:
        """‖b‖ = sin(g_f, g_r)/‖g_r‖."""
        return self._sine / self.retain_norm

    @property
    def projection_coefficient(self) -> float:
        """c = <g_f, g_r>/‖g_r‖², the multiple of g_r that a projection removes from g_f."""
        return self.value * self.forget_norm / self.retain_norm

    @property
    def _sine(self) -> float:
        return math.sqrt(max(0.0, 1.0 - self.value**2))

    @property
    def a(self) -> Coefficients2:
        """Coefficients of a on (g_f, g_r)."""
        return -self.value / self.forget_norm**2, 1 / (self.forget_norm * self.retain_norm)

    @property
    def b(self) -> Coefficients2:
        """Coefficients of b on (g_f, g_r)."""
        return 1 / (self.forget_norm * self.retain_norm), -self.value / self.retain_norm**2

    def rates(self, f_f: float, f_r: float, r_f: float, r_r: float) -> tuple[Coefficients4, Coefficients4]:
        """Return the coefficients of ȧ and ḃ on (g_f, g_r, ġ_f, ġ_r), by the product rule on a and b.

        Args:
            f_f: <g_f, ġ_f>.
            f_r: <g_f, ġ_r>.
            r_f: <g_r, ġ_f>.
            r_r: <g_r, ġ_r>.
        """
        # The rates of the norms are relative: the derivative of ‖g‖ along v, divided by ‖g‖.
        forget_norm_rate, retain_norm_rate = f_f / self.forget_norm**2, r_r / self.retain_norm**2
        norm_rates = forget_norm_rate + retain_norm_rate
        similarity_rate = (r_f + f_r) / (self.forget_norm * self.retain_norm) - self.value * norm_rates
        a_f, a_r = self.a
        b_f, b_r = self.b
        return (
            (-similarity_rate / self.forget_norm**2 - 2 * a_f * forget_norm_rate, -a_r * norm_rates, a_f, a_r),
            (-b_f * norm_rates, -similarity_rate / self.retain_norm**2 - 2 * b_r * retain_norm_rate, b_f, b_r),
        )
