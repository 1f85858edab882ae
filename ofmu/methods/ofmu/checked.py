"""∇Φ and ∇²Φ·∇Φ with checked finite differences: the step fits the model, and a wrong derivative is never silent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from ofmu.errors import DerivativeError
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.derivatives import Derivatives
from ofmu.methods.ofmu.points import HINGES, Ascent, Hinge, PhiGradient
from ofmu.vectors.base import Vector

RowT = TypeVar("RowT")

WARNING_ERROR = 0.05
"""Estimated relative error of a direction above which a run warns."""
LARGEST_ERROR = 0.3
"""Estimated relative error of a direction above which a run stops."""
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class CheckedDerivatives(Generic[RowT]):
    """Fit the difference steps at the first use, and again every ``derivative_check_every`` outer steps.

    The first use is that of each kind of difference: inside ∇Φ, of ∇Φ with a closed hinge, and of ∇Φ with an open one.
    A step that suits one of them may not suit another.

    A fit adds gradient evaluations, which the cost tracker counts. Without a fit, the derivatives and their cost are
    those of :class:`ofmu.methods.ofmu.derivatives.Derivatives`.

    Args:
        derivatives: computes the derivatives.
        config: the settings of OFMU.
        model_config: the model's config, in which a routing of tokens to experts is recognised.
    """

    def __init__(self, derivatives: Derivatives[RowT], config: OfmuConfig, model_config: Any) -> None:
        self._derivatives, self._config, self._model_config = derivatives, config, model_config
        self._warned = False
        self._set_due()
        self.inner_error: float | None = None
        """Estimated error of ∇Φ at the last check, relative to ‖∇Φ‖."""
        self.outer_error: float | None = None
        """Estimated error of the outer direction at the last check, relative to its norm."""

    def begin_outer_step(self, steps_taken: int) -> None:
        """Forget the errors of the last outer step. Check anew if it is time."""
        self.inner_error = self.outer_error = None
        every = self._config.derivative_check_every
        if every and steps_taken and steps_taken % every == 0:
            self._set_due()

    def _set_due(self) -> None:
        """Check the next difference of each kind that the config has."""
        config = self._config
        self._inner_due = config.has_inner_differences
        self._outer_due: set[Hinge] = set() if config.outer_hvp_mode == "exact" else set(HINGES)

    def phi_gradient(
        self, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT], *, decorrelates: bool = True
    ) -> PhiGradient[RowT]:
        """Return ∇Φ, or p, or g_f. See :meth:`ofmu.methods.ofmu.derivatives.Derivatives.phi_gradient`.

        Raises:
            NonFiniteLossError: a loss or ‖∇Φ‖ is NaN or infinite.
            DerivativeError: the estimated error of ∇Φ is above :data:`LARGEST_ERROR`.
        """
        phi = self._derivatives.phi_gradient(forget_rows, retain_rows, decorrelates=decorrelates)
        if self._inner_due and phi.hinge_open:
            self._inner_due = False
            phi, self.inner_error = self._derivatives.fit_inner_step(phi)
            self._judge(self.inner_error, "∇Φ", "derivative", "set method.decorrelation to 'projection'")
        return phi

    def ascent(self, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT], *, decorrelates: bool) -> Ascent:
        """Return what an ascent step uses. Without decorrelation, g_r is not computed.

        Args:
            forget_rows: global minibatch of D_f.
            retain_rows: global minibatch of D_r.
            decorrelates: False: this step ascends g_f, whatever the config says.

        Raises:
            NonFiniteLossError: a loss or ‖∇Φ‖ is NaN or infinite.
            DerivativeError: the estimated error of ∇Φ is above :data:`LARGEST_ERROR`.
        """
        if not (decorrelates and self._config.decorrelates):
            return self._derivatives.forget_ascent(forget_rows)
        phi = self.phi_gradient(forget_rows, retain_rows)
        return Ascent(phi.point.forget_loss, phi.gradient, phi.norm, phi.hinge_open)

    def retain_gradient(self, retain_rows: Sequence[RowT]) -> tuple[float, Vector]:
        """Return L_r and g_r."""
        return self._derivatives.retain_gradient(retain_rows)

    def outer_direction(self, phi: PhiGradient[RowT], direction: Vector, weight: float) -> Vector:
        """Return ``direction`` + ``weight``·∇²Φ·∇Φ. The sum may take the place of ``direction``.

        Afterwards nothing may read the gradients of ``phi``'s point. ``direction`` may be one of them, g_r.

        Raises:
            DerivativeError: the estimated error of the direction is above :data:`LARGEST_ERROR`.
        """
        space = self._derivatives.space
        if self._config.outer_hvp_mode == "exact":
            if not self._derivatives.is_plain_product(phi):
                return self._derivatives.penalty_product(phi, into=direction, scale=weight, last=True)
            # A small product would get lost if it were added to a gradient in bf16 micro-batch by micro-batch.
            space.add(direction, self._derivatives.penalty_product(phi), weight)
            return direction
        # A difference of ∇Φ needs ∇Φ alone at the undisplaced point.
        phi.point.release_forget_gradient()
        is_exact = self._config.plain_products_in_forward_mode and self._derivatives.is_plain_product(phi)
        if is_exact or phi.hinge not in self._outer_due or phi.norm == 0:
            return self._derivatives.penalty_product(phi, into=direction, scale=weight)
        self._outer_due.remove(phi.hinge)

        def size(product: Vector) -> float:
            # A small penalty weight makes an error of the product harmless.
            return space.norm_of_sum((1.0, direction), (weight, product)) / weight

        product = self._derivatives.penalty_product(phi)
        product, self.outer_error = self._derivatives.fit_outer_step(phi, product, size)
        self._judge(self.outer_error, "the outer direction", "outer_derivative", "set method.penalty_weight to 0")
        space.add(direction, product, weight)
        return direction

    def _judge(self, error: float, name: str, setting: str, other: str) -> None:
        """Warn once of a large error, and stop at a larger one."""
        if error <= WARNING_ERROR:
            return
        reason = ", since the model routes tokens to experts and its gradient jumps" if self._routes() else ""
        text = (
            f"Finite differences do not suit this model: the estimated error of {name} is {error:.0%}{reason}: "
            f"set method.{setting} to 'exact', or {other}"
        )
        if error > LARGEST_ERROR:
            raise DerivativeError(text)
        if not self._warned:
            self._warned = True
            warnings.warn(text, stacklevel=4)

    def _routes(self) -> bool:
        return any(
            isinstance(count := getattr(self._model_config, name, None), int) and count > 1 for name in _EXPERT_COUNTS
        )

    def state(self) -> dict[str, Any]:
        """Return the fitted steps and what is still to be checked as JSON values."""
        return {
            "inner_step": self._derivatives.inner_step,
            "outer_steps": dict(self._derivatives.outer_steps),
            "inner_due": self._inner_due,
            "outer_due": sorted(self._outer_due),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with the steps of a checkpoint."""
        self._set_due()
        self._derivatives.inner_step, self._inner_due = float(state["inner_step"]), bool(state["inner_due"])
        if "outer_steps" in state:
            self._derivatives.outer_steps = {hinge: float(state["outer_steps"][hinge]) for hinge in HINGES}
            self._outer_due = {hinge for hinge in HINGES if hinge in state["outer_due"]}
        else:
            # An older checkpoint has one step and one flag, which do not tell at which hinge a difference was checked.
            self._derivatives.outer_steps = dict.fromkeys(HINGES, float(state["outer_step"]))
