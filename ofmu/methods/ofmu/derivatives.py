"""∇Φ and ∇²Φ·∇Φ, exactly by double backward or by finite differences of first-order gradients.

With Φ = L_f − β·max(0, S − τ), S = cos(g_f, g_r), and H the Hessian of a loss, the derivatives are

    ∇S = H_f a + H_r b                    a and b as in :mod:`ofmu.methods.ofmu.similarity`
    ∇Φ = g_f − β·1[S > τ]·∇S
    ∇(‖∇Φ‖²)/2 = ∇²Φ·∇Φ.

``decorrelation`` chooses how the forget gradient is separated from the retain gradient while S > τ:

- ``cosine``: the Φ above, which is the paper's (arXiv 2509.22483).
- ``projection``: the ascent direction is p = g_f − c·g_r with c = <g_f, g_r>/‖g_r‖², which is g_f without its part
  along g_r. p is not the gradient of any Φ. The stationarity residual is ‖p‖. From ‖p‖² = ‖g_f‖² − <g_f, g_r>²/‖g_r‖²
  follows ∇(‖p‖²)/2 = (H_f − c·H_r)·p. The derivative of c drops out because p ⟂ g_r, so a difference along p with a
  constant c is exact. This product costs 4 gradient evaluations, and p costs none beyond g_f and g_r.
- ``none``: Φ = L_f. The hinge is always closed.

∇S grows like 1/‖g_f‖ where the forget set is memorised, so no single β suits a whole run. With the ``similarity_scale``
``gradients``, β is ``similarity_weight``·‖g_f‖·‖g_r‖ at the point where ∇Φ is taken. All derivatives treat this β as
constant.

A finite difference along u displaces the parameters by ε·u with ε = c·‖θ‖/‖u‖. The displacement has the length c·‖θ‖.
The first c were measured on small Llama models in fp32. :meth:`Derivatives.fit_inner_step` and
:meth:`Derivatives.fit_outer_step` estimate the error and shorten c where a model needs it.

With a ``product_share`` below 1, H and the displaced gradients are those of the minibatch's first rows. g_f, g_r and S
are those of all of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from ofmu.engine.base import Engine
from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.points import HINGES, Ascent, Hinge, PhiGradient, Place, Point, SimilarityTerm
from ofmu.methods.ofmu.product_rows import ProductEngine
from ofmu.methods.ofmu.similarity import Similarity
from ofmu.methods.ofmu.step_size import fit_step
from ofmu.vectors.base import Displacement, Vector

RowT = TypeVar("RowT")

INNER_STEP = {"central": 1e-4, "forward": 3e-5, "reverse_over_forward": 0.0, "exact": 0.0}
"""c of the Hessian-vector products inside ∇Φ, before a fit."""
OUTER_STEP = 3e-4
"""c of the central difference of ∇Φ, before a fit."""
INNER_TOLERANCE = {"central": 1e-3, "forward": 1e-2}
"""Estimated relative error of ∇S at which a fit ends."""
OUTER_TOLERANCE = 1e-2
"""Estimated error, from ∇²Φ·∇Φ, of the outer direction at which a fit ends."""
_ORDER = {"central": 2, "forward": 1}


class Derivatives(Generic[RowT]):
    """∇Φ and ∇²Φ·∇Φ at the engine's current parameters.

    A minibatch is the same at all displaced points of one derivative. Each call leaves the parameters bit for bit as
    they were.

    Args:
        engine: computes gradients and exact products.
        forget_loss: L_f.
        retain_loss: L_r.
        config: the settings of OFMU.
    """

    def __init__(self, engine: Engine, forget_loss: Loss[RowT], retain_loss: Loss[RowT], config: OfmuConfig) -> None:
        self._engine, self.space, self._config = engine, engine.space, config
        self._products = ProductEngine(engine, config.product_share)
        self._forget_loss, self._retain_loss = forget_loss, retain_loss
        self.inner_step = INNER_STEP[config.derivative]
        """c of the differences inside ∇Φ."""
        self.outer_steps: dict[Hinge, float] = dict.fromkeys(HINGES, OUTER_STEP)
        """c of the difference of ∇Φ, by the state of the hinge."""

    def phi_gradient(
        self, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT], *, decorrelates: bool = True
    ) -> PhiGradient[RowT]:
        """Return ∇Φ = g_f − β·1[S > τ]·(H_f a + H_r b), or p = g_f − 1[S > τ]·c·g_r.

        Args:
            forget_rows: global minibatch of D_f.
            retain_rows: global minibatch of D_r.
            decorrelates: False: the hinge stays closed, whatever the config says.

        Raises:
            NonFiniteLossError: a loss or ‖∇Φ‖ is NaN or infinite.
        """
        point = self._point(forget_rows, retain_rows, self._engine)
        exceeds = point.similarity.value > self._config.similarity_threshold
        exceeds &= decorrelates and self._config.decorrelates
        return self._phi_gradient_at(point, exceeds=exceeds, weight=self._beta(point.similarity))

    def forget_ascent(self, forget_rows: Sequence[RowT]) -> Ascent:
        """Return ∇Φ = ∇L_f for a step that does not decorrelate. g_r is not computed.

        Raises:
            NonFiniteLossError: L_f or ‖∇L_f‖ is NaN or infinite.
        """
        loss, gradient = self._engine.gradient(self._forget_loss, forget_rows)
        norm = self.space.norm(gradient)
        _check_finite(norm)
        return Ascent(loss, gradient, norm, hinge_open=False)

    def retain_gradient(self, retain_rows: Sequence[RowT]) -> tuple[float, Vector]:
        """Return L_r and g_r.

        Raises:
            NonFiniteLossError: L_r is NaN or infinite.
        """
        return self._engine.gradient(self._retain_loss, retain_rows)

    def is_plain_product(self, phi: PhiGradient[RowT]) -> bool:
        """Return whether ∇²Φ·∇Φ is a sum of products H·∇Φ: with a closed hinge, and with ``projection``."""
        return not phi.hinge_open or self._config.decorrelation == "projection"

    def penalty_product(
        self, phi: PhiGradient[RowT], *, into: Vector | None = None, scale: float = 1.0, last: bool = False
    ) -> Vector:
        """Return ``scale``·∇(‖∇Φ‖²)/2 = ``scale``·∇²Φ·∇Φ on the minibatches, the hinge state and the β of ``phi``.

        With a closed hinge, ∇²Φ is H_f. With ``projection``, the result is ∇(‖p‖²)/2 = (H_f − c·H_r)·p.

        Args:
            phi: ∇Φ at the point.
            into: the vector to which the product is added, and which is returned. None: a new vector.
            scale: the factor.
            last: True: nothing reads the gradients of ``phi``'s point afterwards. An exact product with an open hinge
                then takes their memory. ``into`` may be g_r, and the sum is then returned as a new vector.
        """
        config, point = self._config, phi.point
        total = self.space.gradient_zeros() if into is None else into
        if phi.norm == 0:
            return total
        if self.is_plain_product(phi):
            terms = [(self._forget_loss, point.forget_rows, 1.0)]
            if phi.hinge_open:
                terms.append((self._retain_loss, point.retain_rows, -point.similarity.projection_coefficient))
            self._add_hessian_products(total, scale, phi, terms)
        elif config.outer_hvp_mode == "exact":
            total = self._add_exact_penalty_product(total, scale, phi, last=last)
        else:

            def add_phi_gradient(scale: float, place: Place) -> None:
                displaced = self._point(point.forget_rows, point.retain_rows, self._products)
                self.space.add(total, displaced.forget_gradient, scale)
                if displaced.similarity.is_defined:
                    self._add_similarity_gradient(total, -phi.weight * scale, displaced, place)

            self._add_central_difference(scale, phi, add_phi_gradient)
        return total

    def fit_inner_step(self, phi: PhiGradient[RowT]) -> tuple[PhiGradient[RowT], float]:
        """Fit the step of the differences in ∇S at the point of ``phi``, whose hinge must be open.

        Returns:
            ∇Φ at the fitted step, and the estimated error of ∇Φ relative to ‖∇Φ‖.
        """
        space, point, mode = self.space, phi.point, self._config.derivative

        def phi_gradient_at(step: float) -> Vector:
            self.inner_step = step
            return self._decorrelated(point, phi.weight)

        def size(gradient: Vector) -> float:
            return space.norm_of_sum((1.0, gradient), (-1.0, point.forget_gradient))

        fitted = fit_step(
            space,
            phi_gradient_at,
            size,
            self.inner_step,
            phi.gradient,
            order=_ORDER[mode],
            tolerance=INNER_TOLERANCE[mode],
        )
        self.inner_step = fitted.step
        norm = space.norm(fitted.value)
        return replace(phi, gradient=fitted.value, norm=norm), fitted.error * size(fitted.value) / norm

    def fit_outer_step(
        self, phi: PhiGradient[RowT], product: Vector, size: Callable[[Vector], float]
    ) -> tuple[Vector, float]:
        """Fit the step of the difference in ∇²Φ·∇Φ, for the hinge as it is in ``phi``.

        Args:
            phi: ∇Φ at the point.
            product: :meth:`penalty_product` at the present step.
            size: returns, for a product, the norm to which the error is relative.

        Returns:
            The product at the fitted step, and its estimated error relative to ``size``.
        """

        def product_at(step: float) -> Vector:
            self.outer_steps[phi.hinge] = step
            return self.penalty_product(phi)

        start = self.outer_steps[phi.hinge]
        fitted = fit_step(self.space, product_at, size, start, product, order=2, tolerance=OUTER_TOLERANCE)
        self.outer_steps[phi.hinge] = fitted.step
        return fitted.value, fitted.error

    def _point(
        self, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT], engine: Engine | ProductEngine
    ) -> Point[RowT]:
        """Return L_f, L_r, g_f, g_r and S at the current parameters."""
        forget_loss, g_f = engine.gradient(self._forget_loss, forget_rows)
        retain_loss, g_r = engine.gradient(self._retain_loss, retain_rows)
        ff, rr, fr = self.space.dots((g_f, g_f), (g_r, g_r), (g_f, g_r))
        similarity = Similarity.from_dot(math.sqrt(ff), math.sqrt(rr), fr)
        return Point(forget_rows, retain_rows, forget_loss, retain_loss, g_f, g_r, similarity)

    def _beta(self, similarity: Similarity) -> float:
        """Return β in the unit that ``similarity_scale`` names."""
        absolute = self._config.similarity_scale == "absolute"
        return self._config.similarity_weight * (1.0 if absolute else similarity.forget_norm * similarity.retain_norm)

    def _phi_gradient_at(self, point: Point[RowT], *, exceeds: bool, weight: float) -> PhiGradient[RowT]:
        """Return ∇Φ, or p. ``exceeds`` says whether S > τ. The hinge stays closed where S is undefined."""
        hinge_open = exceeds and point.similarity.is_defined
        if hinge_open:
            gradient = self._decorrelated(point, weight)
            norm = self.space.norm(gradient)
        else:
            gradient, norm = point.forget_gradient, point.similarity.forget_norm
        _check_finite(norm)
        return PhiGradient(point=point, hinge_open=hinge_open, weight=weight, gradient=gradient, norm=norm)

    def _decorrelated(self, point: Point[RowT], weight: float) -> Vector:
        """Return g_f − β·∇S, or g_f − c·g_r, which takes the place of g_f."""
        if self._config.decorrelation == "projection":
            gradient = point.forget_gradient
            point.release_forget_gradient()
            self.space.add(gradient, point.retain_gradient, -point.similarity.projection_coefficient)
            return gradient
        gradient = self.space.combine((1.0, point.forget_gradient))
        self._add_similarity_gradient(gradient, -weight, point)
        return gradient

    def _add_similarity_gradient(
        self, into: Vector, scale: float, point: Point[RowT], place: Place | None = None
    ) -> None:
        """Add ``scale``·∇S = ``scale``·(H_f a + H_r b) to ``into``.

        Args:
            into: the vector to add to.
            scale: the factor.
            point: the gradients at the current parameters.
            place: the current parameters as a displacement, which a caller restores. None: a difference restores the
                parameters itself.
        """
        s = point.similarity
        gradients = (point.forget_gradient, point.retain_gradient)
        terms = (
            SimilarityTerm(
                self._forget_loss, point.forget_rows, gradients[0], list(zip(s.a, gradients, strict=True)), s.a_norm
            ),
            SimilarityTerm(
                self._retain_loss, point.retain_rows, gradients[1], list(zip(s.b, gradients, strict=True)), s.b_norm
            ),
        )
        if self._config.derivative in ("exact", "reverse_over_forward"):
            for term in terms:
                self._add_product(into, scale, term.loss, term.rows, self.space.combine(*term.direction))
            return
        if place is None:
            with self.space.preserving_parameters() as origin:
                self._add_differences(into, scale, terms, Place(origin))
        else:
            self._add_differences(into, scale, terms, place)

    def _add_differences(self, into: Vector, scale: float, terms: Sequence[SimilarityTerm[RowT]], place: Place) -> None:
        """Add ``scale``·H·u of both terms. The parameters are left displaced."""
        displacement = self.inner_step * self.space.parameter_norm()
        for term in terms:
            if term.norm > 0:
                self._add_difference(into, scale, term, place, displacement / term.norm)

    def _add_difference(
        self, into: Vector, scale: float, term: SimilarityTerm[RowT], place: Place, step: float
    ) -> None:
        """Add ``scale``·H·u, by [g(θ + εu) − g(θ − εu)]/2ε (central) or [g(θ + εu) − g(θ)]/ε (forward)."""
        space, engine = self.space, self._products
        space.displace(place.origin, *place.displacements, Displacement(step, term.direction))
        if self._config.derivative == "central":
            engine.gradient(term.loss, term.rows, into=into, scale=scale / (2 * step))
            space.displace(place.origin, *place.displacements, Displacement(-step, term.direction))
            engine.gradient(term.loss, term.rows, into=into, scale=-scale / (2 * step))
        else:
            engine.gradient(term.loss, term.rows, into=into, scale=scale / step)
            space.add(into, term.gradient, -scale / step)

    def _add_hessian_products(
        self,
        into: Vector,
        scale: float,
        phi: PhiGradient[RowT],
        terms: Sequence[tuple[Loss[RowT], Sequence[RowT], float]],
    ) -> None:
        """Add ``scale``·Σ weight·H·∇Φ over terms of (loss, rows, weight) to ``into``."""
        config = self._config
        if config.outer_hvp_mode == "exact" or config.plain_products_in_forward_mode:
            for loss, rows, weight in terms:
                self._add_product(into, scale * weight, loss, rows, phi.gradient)
            return

        def add_gradients(scale: float, place: Place) -> None:
            for loss, rows, weight in terms:
                self._products.gradient(loss, rows, into=into, scale=weight * scale)

        self._add_central_difference(scale, phi, add_gradients)

    def _add_product(
        self, into: Vector, scale: float, loss: Loss[RowT], rows: Sequence[RowT], direction: Vector
    ) -> None:
        """Add ``scale``·H·direction, an exact product, to ``into``."""
        forward_mode = self._config.derivative == "reverse_over_forward"
        self._products.hvp(loss, rows, direction, into=into, scale=scale, forward_mode=forward_mode)

    def _add_central_difference(
        self, scale: float, phi: PhiGradient[RowT], add: Callable[[float, Place], None]
    ) -> None:
        """Add ``scale``·[f(θ + ε∇Φ) − f(θ − ε∇Φ)]/2ε.

        ``add(scale, place)`` adds ``scale``·f at the current parameters, which are those of ``place``.
        """
        space = self.space
        with space.preserving_parameters() as origin:
            step = self.outer_steps[phi.hinge] * space.norm(origin) / phi.norm
            for sign in (1.0, -1.0):
                displacement = Displacement(sign * step, [(1.0, phi.gradient)])
                space.displace(origin, displacement)
                add(scale * sign / (2 * step), Place(origin, (displacement,)))

    def _add_exact_penalty_product(self, into: Vector, scale: float, phi: PhiGradient[RowT], *, last: bool) -> Vector:
        """Add ``scale`` times the derivative of ∇Φ along v = ∇Φ to ``into``. Return the sum.

        The derivative is H_f v − β·(∇³L_f[a, v] + H_f ȧ + ∇³L_r[b, v] + H_r ḃ).

        ȧ and ḃ are the derivatives of a and b along v. They follow from ġ_f = H_f v and ġ_r = H_r v. Every term is an
        average over ranks of local terms. S is no such average, so S itself cannot be differentiated on each rank.
        """
        engine, space, point, v = self._products, self.space, phi.point, phi.gradient
        g_f, g_r, similarity = point.forget_gradient, point.retain_gradient, point.similarity
        g_f_rate = engine.hvp(self._forget_loss, point.forget_rows, v)
        g_r_rate = engine.hvp(self._retain_loss, point.retain_rows, v)
        a_rate, b_rate = similarity.rates(
            *space.dots((g_f, g_f_rate), (g_f, g_r_rate), (g_r, g_f_rate), (g_r, g_r_rate))
        )
        if into is g_r:
            # The sum of parts of any size is formed in fp32.
            into = space.zeros()
            space.add(into, g_r, 1.0)
        if last:
            point.release_gradients()
        else:
            g_f, g_r = space.combine((1.0, g_f)), space.combine((1.0, g_r))
        space.add(into, g_f_rate, scale)
        # a, b, ȧ and ḃ take the memory of the vectors of which they are sums.
        space.transform((g_f, g_r, g_f_rate, g_r_rate), (similarity.a, similarity.b, a_rate, b_rate))
        # The products come first, so that ȧ and ḃ are not in memory beside the graphs of triple backward passes.
        losses = (self._forget_loss, point.forget_rows), (self._retain_loss, point.retain_rows)
        directions, rates = [g_r, g_f], [g_r_rate, g_f_rate]
        del g_f, g_r, g_f_rate, g_r_rate
        for loss, rows in losses:
            engine.hvp(loss, rows, rates.pop(), into=into, scale=-phi.weight * scale)
        for loss, rows in losses:
            engine.hvp_derivative(loss, rows, directions.pop(), v, into=into, scale=-phi.weight * scale)
        return into


def _check_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise NonFiniteLossError(f"the norm of the inner gradient became {norm}")
