"""∇Φ and ∇²Φ·∇Φ (method.md, "The derivatives"): exactly, or by finite differences of first-order passes.

``decorrelation`` says how the forget gradient is kept apart from the retain gradient while S > τ:

- ``cosine``: the paper's Φ = L_f − β·max(0, S − τ);
- ``projection``: the ascent direction is p = g_f − c·g_r with c = <g_f, g_r>/‖g_r‖², what is left of g_f once its
  part along g_r is taken out. p is no Φ's gradient; the stationarity residual is ‖p‖. From
  ‖p‖² = ‖g_f‖² − <g_f, g_r>²/‖g_r‖² follows ∇(‖p‖²)/2 = (H_f − c·H_r)·p: since p ⟂ g_r, the derivative of c drops
  out, and a difference along p with c frozen is exact. 4 gradient evaluations, none of them for the direction;
- ``none``: Φ = L_f, the hinge is always closed.

∇S grows like 1/‖g_f‖ where the forget set is memorised, so that no one β suits a whole run. With ``similarity_scale``
``gradients`` β is ``similarity_weight``·‖g_f‖·‖g_r‖ at the point where ∇Φ is taken, a constant to all derivatives.

Steps of finite differences follow one rule, ε = c·‖θ‖/‖u‖: the displacement is a fixed share of the
parameters' norm. The constants were measured on Llama models in fp32 and serve float64 as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ofmu.engine.base import Engine
from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.vectors.base import Vector

RowT = TypeVar("RowT")

INNER_STEP = {"central": 1e-4, "forward": 3e-5}
"""c of the Hessian-vector products inside ∇Φ."""
OUTER_STEP = 3e-4
"""c of the central difference of ∇Φ."""


@dataclass
class PhiGradient:
    """∇Φ at one point on one pair of minibatches, with the pieces it was made of.

    Under the decorrelation ``projection``, p stands wherever ∇Φ is written here.
    """

    forget_loss: float
    retain_loss: float
    similarity: float
    """S = cos(g_f, g_r); 0 where a gradient vanishes and S is undefined."""
    hinge_open: bool
    """Whether g_f was decorrelated: S > τ, and the settings ask for it."""
    gradient: Vector
    """∇Φ (ascent direction)."""
    forget_gradient: Vector
    retain_gradient: Vector
    norm: float
    """‖∇Φ‖"""
    weight: float
    """β as it multiplied ∇S; ``similarity_weight``·‖g_f‖·‖g_r‖ where ``similarity_scale`` is ``gradients``."""
    forget_norm: float
    retain_norm: float

    @property
    def shared(self) -> float:
        """c = <g_f, g_r>/‖g_r‖², the multiple of g_r that a projection takes out of g_f."""
        return self.similarity * self.forget_norm / self.retain_norm


class Derivatives(Generic[RowT]):
    """Derivatives of Φ = L_f − β·max(0, S − τ) at the engine's current parameters.

    Both losses are evaluated on minibatches given by the caller, the same at every displaced point. Parameters
    are the same bits before and after each call.
    """

    def __init__(self, engine: Engine, forget: Loss[RowT], retain: Loss[RowT], config: OfmuConfig) -> None:
        self._engine = engine
        self._space = engine.space
        self._forget, self._retain = forget, retain
        self._beta = config.similarity_weight
        self._threshold = config.similarity_threshold
        self._relative = config.similarity_scale == "gradients"
        self._decorrelation = config.decorrelation
        self._inner = config.derivative
        self._outer = config.outer_hvp_mode

    def phi_gradient(
        self,
        forget_rows: Sequence[RowT],
        retain_rows: Sequence[RowT],
        *,
        hinge: bool | None = None,
        weight: float | None = None,
    ) -> PhiGradient:
        """Return ∇Φ = g_f − β·1[S > τ]·(H_f a + H_r b); with ``projection`` p = g_f − 1[S > τ]·c·g_r.

        Args:
            forget_rows: global minibatch of D_f.
            retain_rows: global minibatch of D_r.
            hinge: forces the hinge open or closed; None decides by S > τ at this point.
            weight: β of another point; None takes this one's.

        Raises:
            NonFiniteLossError: a loss or ‖∇Φ‖ is NaN or infinite.
        """
        engine, space = self._engine, self._space
        forget_loss, g_f = engine.gradient(self._forget, forget_rows)
        retain_loss, g_r = engine.gradient(self._retain, retain_rows)
        ff, rr, fr = space.dots((g_f, g_f), (g_r, g_r), (g_f, g_r))
        cosine = _Cosine.of(math.sqrt(ff), math.sqrt(rr), fr)
        if weight is None:
            weight = self._beta * (cosine.forget_norm * cosine.retain_norm if self._relative else 1.0)
        is_open = cosine.defined and (self._applies(cosine.value) if hinge is None else hinge)
        if is_open:
            gradient = space.combine((1.0, g_f))
            if self._decorrelation == "projection":
                space.add(gradient, g_r, -fr / rr)
            else:
                self._add_similarity_gradient(gradient, -weight, cosine, g_f, g_r, forget_rows, retain_rows)
            norm = space.norm(gradient)
        else:
            gradient, norm = g_f, cosine.forget_norm
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"the norm of the inner gradient became {norm}")
        return PhiGradient(
            forget_loss=forget_loss,
            retain_loss=retain_loss,
            similarity=cosine.value,
            hinge_open=is_open,
            gradient=gradient,
            forget_gradient=g_f,
            retain_gradient=g_r,
            norm=norm,
            weight=weight,
            forget_norm=cosine.forget_norm,
            retain_norm=cosine.retain_norm,
        )

    def _applies(self, similarity: float) -> bool:
        weighted = self._beta > 0 or self._decorrelation == "projection"
        return self._decorrelation != "none" and weighted and similarity > self._threshold

    def penalty_product(self, phi: PhiGradient, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT]) -> Vector:
        """Return ∇(‖∇Φ‖²)/2, which is ∇²Φ·∇Φ, on the minibatches, the hinge state and the β of ``phi``.

        With ``projection`` this is ∇(‖p‖²)/2 = (H_f − c·H_r)·p.
        """
        if phi.norm == 0:
            return self._space.zeros()
        if not phi.hinge_open or self._decorrelation == "projection":
            parts = [(self._forget, forget_rows, 1.0)]
            if phi.hinge_open:
                parts.append((self._retain, retain_rows, -phi.shared))
            return self._products_along(phi, parts)
        if self._outer == "exact":
            return self._exact_penalty_product(phi, forget_rows, retain_rows)
        space = self._space
        with space.preserving_parameters() as origin:
            step = OUTER_STEP * space.norm(origin) / phi.norm
            product = space.zeros()
            for sign in (1.0, -1.0):
                space.set_offset(origin, phi.gradient, sign * step)
                moved = self.phi_gradient(forget_rows, retain_rows, hinge=True, weight=phi.weight).gradient
                space.add(product, moved, sign / (2 * step))
        return product

    def _products_along(self, phi: PhiGradient, parts: Sequence[tuple[Loss[RowT], Sequence[RowT], float]]) -> Vector:
        """Return Σ weight · H · ∇Φ over losses, exactly or by one central difference of their gradients."""
        engine, space = self._engine, self._space
        product = space.zeros()
        if self._outer == "exact":
            for loss, rows, weight in parts:
                engine.hessian_product(loss, rows, phi.gradient, into=product, scale=weight)
            return product
        with space.preserving_parameters() as origin:
            step = OUTER_STEP * space.norm(origin) / phi.norm
            for sign in (1.0, -1.0):
                space.set_offset(origin, phi.gradient, sign * step)
                for loss, rows, weight in parts:
                    engine.gradient(loss, rows, into=product, scale=weight * sign / (2 * step))
        return product

    def step_check(self, phi: PhiGradient, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT]) -> float | None:
        """Return the relative change of ∇S when the finite-difference step c is doubled; None without one.

        Only the decorrelation ``cosine`` takes ∇S. A value far above 1e-2 says that the model or the precision does
        not suit finite differences.
        """
        if self._decorrelation != "cosine" or self._inner == "exact" or phi.forget_norm == 0 or phi.retain_norm == 0:
            return None
        space = self._space
        g_f, g_r = phi.forget_gradient, phi.retain_gradient
        fr = phi.similarity * phi.forget_norm * phi.retain_norm
        cosine = _Cosine.of(phi.forget_norm, phi.retain_norm, fr)
        results = []
        for widening in (1.0, 2.0):
            result = space.zeros()
            self._add_similarity_gradient(result, 1.0, cosine, g_f, g_r, forget_rows, retain_rows, widening=widening)
            results.append(result)
        space.add(results[1], results[0], -1.0)
        size = space.norm(results[0])
        return space.norm(results[1]) / size if size else 0.0

    def _add_similarity_gradient(
        self,
        into: Vector,
        scale: float,
        cosine: _Cosine,
        g_f: Vector,
        g_r: Vector,
        forget_rows: Sequence[RowT],
        retain_rows: Sequence[RowT],
        *,
        widening: float = 1.0,
    ) -> None:
        """Add ``scale · ∇S`` = scale · (H_f a + H_r b)."""
        space = self._space
        # |a| = |∂S/∂g_f| = sin(angle)/‖g_f‖, and likewise b: no further inner product is needed
        jobs: tuple[tuple[Loss[RowT], Sequence[RowT], tuple[float, float], float, Vector], ...] = (
            (self._forget, forget_rows, cosine.forget_direction(), cosine.sine / cosine.forget_norm, g_f),
            (self._retain, retain_rows, cosine.retain_direction(), cosine.sine / cosine.retain_norm, g_r),
        )

        # a and b are each as large as the model and never needed together, so no name keeps one alive
        def along(coefficients: tuple[float, float]) -> Vector:
            return space.combine(*zip(coefficients, (g_f, g_r), strict=True))

        if self._inner == "exact":
            for loss, rows, coefficients, _, _ in jobs:
                self._engine.hessian_product(loss, rows, along(coefficients), into=into, scale=scale)
            return
        with space.preserving_parameters() as origin:
            size = INNER_STEP[self._inner] * widening * space.norm(origin)
            for loss, rows, coefficients, length, gradient in jobs:
                if length == 0:
                    continue
                step = size / length
                self._add_difference(into, scale, loss, rows, origin, along(coefficients), step, gradient)

    def _add_difference(
        self,
        into: Vector,
        scale: float,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        origin: Vector,
        direction: Vector,
        step: float,
        gradient: Vector,
    ) -> None:
        """Add ``scale · H·direction`` by a central or forward difference of the loss's gradient."""
        space, engine = self._space, self._engine
        space.set_offset(origin, direction, step)
        if self._inner == "central":
            engine.gradient(loss, rows, into=into, scale=scale / (2 * step))
            space.set_offset(origin, direction, -step)
            engine.gradient(loss, rows, into=into, scale=-scale / (2 * step))
        else:
            engine.gradient(loss, rows, into=into, scale=scale / step)
            space.add(into, gradient, -scale / step)

    def _exact_penalty_product(
        self, phi: PhiGradient, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT]
    ) -> Vector:
        """Differentiate ∇Φ along v = ∇Φ: H_f v − β·(∇³L_f[a, v] + H_f ȧ + ∇³L_r[b, v] + H_r ḃ).

        ȧ and ḃ, the derivatives of a and b along v, follow from ġ_f = H_f v and ġ_r = H_r v. Every term is an
        average over ranks of local terms, which S itself is not.
        """
        engine, space, v = self._engine, self._space, phi.gradient
        product = engine.hessian_product(self._forget, forget_rows, v)
        g_f, g_r = phi.forget_gradient, phi.retain_gradient
        turn_f = space.combine((1.0, product))
        turn_r = engine.hessian_product(self._retain, retain_rows, v)
        fr, f_f, f_r, r_f, r_r = space.dots((g_f, g_r), (g_f, turn_f), (g_f, turn_r), (g_r, turn_f), (g_r, turn_r))
        cosine = _Cosine.of(phi.forget_norm, phi.retain_norm, fr)
        terms = (g_f, g_r, turn_f, turn_r)
        jobs = (
            (self._forget, forget_rows, cosine.forget_direction(), cosine.turned_forget_direction(f_f, f_r, r_f, r_r)),
            (self._retain, retain_rows, cosine.retain_direction(), cosine.turned_retain_direction(f_f, f_r, r_f, r_r)),
        )
        for loss, rows, direction, turned in jobs:
            first = space.combine(*zip(direction, (g_f, g_r), strict=True))
            dotted = space.combine(*zip(turned, terms, strict=True))
            engine.third_product(loss, rows, first, v, dotted, into=product, scale=-phi.weight)
        return product


@dataclass(frozen=True)
class _Cosine:
    """S = cos(g_f, g_r) and its derivatives, as coefficients on g_f, g_r and their own derivatives.

    a = ∂S/∂g_f = (ĝ_r − S ĝ_f)/‖g_f‖ and b = ∂S/∂g_r = (ĝ_f − S ĝ_r)/‖g_r‖ (method.md).
    """

    forget_norm: float
    retain_norm: float
    value: float

    @staticmethod
    def of(forget_norm: float, retain_norm: float, product: float) -> _Cosine:
        size = forget_norm * retain_norm
        return _Cosine(forget_norm, retain_norm, max(-1.0, min(1.0, product / size)) if size > 0 else 0.0)

    @property
    def defined(self) -> bool:
        return self.forget_norm > 0 and self.retain_norm > 0

    @property
    def sine(self) -> float:
        return math.sqrt(max(0.0, 1.0 - self.value**2))

    def forget_direction(self) -> tuple[float, float]:
        """Coefficients of a on (g_f, g_r)."""
        return -self.value / self.forget_norm**2, 1 / (self.forget_norm * self.retain_norm)

    def retain_direction(self) -> tuple[float, float]:
        """Coefficients of b on (g_f, g_r)."""
        return 1 / (self.forget_norm * self.retain_norm), -self.value / self.retain_norm**2

    def _rates(self, f_f: float, f_r: float, r_f: float, r_r: float) -> tuple[float, float, float]:
        """Return Ṡ and the relative rates of ‖g_f‖ and ‖g_r‖, from the products <g_x, ġ_y>."""
        grow_f, grow_r = f_f / self.forget_norm**2, r_r / self.retain_norm**2
        turned = (r_f + f_r) / (self.forget_norm * self.retain_norm) - self.value * (grow_f + grow_r)
        return turned, grow_f, grow_r

    def turned_forget_direction(
        self, f_f: float, f_r: float, r_f: float, r_r: float
    ) -> tuple[float, float, float, float]:
        """Coefficients of ȧ on (g_f, g_r, ġ_f, ġ_r): the product rule on :meth:`forget_direction`."""
        turned, grow_f, grow_r = self._rates(f_f, f_r, r_f, r_r)
        own, other = self.forget_direction()
        return -turned / self.forget_norm**2 - 2 * own * grow_f, -other * (grow_f + grow_r), own, other

    def turned_retain_direction(
        self, f_f: float, f_r: float, r_f: float, r_r: float
    ) -> tuple[float, float, float, float]:
        """Coefficients of ḃ on (g_f, g_r, ġ_f, ġ_r): the product rule on :meth:`retain_direction`."""
        turned, grow_f, grow_r = self._rates(f_f, f_r, r_f, r_r)
        other, own = self.retain_direction()
        return -other * (grow_f + grow_r), -turned / self.retain_norm**2 - 2 * own * grow_r, other, own
