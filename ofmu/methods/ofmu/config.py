"""OFMU's settings. Their names follow Algorithm 1 of the paper (arXiv 2509.22483)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ofmu.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from ofmu.engine.config import EngineConfig
from ofmu.methods.forget_stop import ForgetStopConfig

PUBLISHED: Mapping[str, Any] = {
    "forget_margin": None,
    "similarity_scale": "absolute",
    "decorrelation": "cosine",
    "regularization_interval": 1,
    "inner_update": "sgd",
    "outer_update": "sgd",
    "similarity_threshold": -1.0,
    "inner_steps": 5,
    "outer_steps": 10,
    "similarity_weight": 0.1,
    "penalty_weight": 0.1,
    "penalty_growth": 1.5,
    "penalty_max": 10.0,
    "inner_lr": 1e-2,
    "outer_lr": 1e-2,
}
"""The paper's setting. The paper states no rates, no β and no schedule of ρ: those are this project's choice."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {key: PUBLISHED[key] for key in ("forget_margin", "similarity_scale", "inner_update", "outer_update")}
    | {"similarity_threshold": -1.0, "decorrelation": "cosine", "regularization_interval": 1},
    "projection": {"decorrelation": "projection"},
    "first_order": {"decorrelation": "none", "penalty_weight": 0.0},
}
"""What ``variant`` sets. ``paper``: the paper's terms. ``projection``: no products inside ∇Φ. ``first_order``: no
decorrelation and no penalty, so no second-order term at all."""
_WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "projection": ("similarity_weight", "similarity_scale"),
    "first_order": ("similarity_weight", "similarity_scale", "similarity_threshold", "regularization_interval"),
}
"""Settings that a variant leaves without effect."""

INNER_REACH = 2.0
"""Length of all inner steps together, as a multiple of the straight way to the margin, where a range test sets η_in."""
LONG_STEP = 0.25
"""Share of the straight way to the margin above which a single inner step is called long. The usual 60 steps take 3 %
each; on a pretrained model of 135M parameters, three steps of 67 % each left no utility."""


def without_effect(variant: str | None) -> frozenset[str]:
    """Return the settings that a variant fixes or leaves without effect."""
    return frozenset() if variant is None else frozenset({*VARIANTS[variant], *_WITHOUT_EFFECT.get(variant, ())})


class OfmuConfig(ForgetStopConfig):
    """The settings of OFMU."""

    added_later: ClassVar[frozenset[str]] = ForgetStopConfig.added_later | {"product_share"}

    name: Literal["ofmu"] = "ofmu"
    """Selects OFMU."""
    variant: Literal["paper", "projection", "first_order"] | None = None
    """A starting point for the settings that are left out. ``paper``: the terms of the paper, without a margin.
    ``projection``: decorrelation by projection. ``first_order``: no decorrelation and no penalty, so that an inner step
    costs one gradient evaluation, and so does an outer step."""
    outer_steps: NonNegativeInt = 30
    """K, the number of outer steps. 0: the target stays as it is."""
    inner_steps: NonNegativeInt = 2
    """T, the ascent steps before each outer step."""
    forget_margin: PositiveFloat | None = 3.0
    """δ, in nats per answer token, or per image: the ascent pushes a row until the row's loss reaches δ. None: the
    paper's L_f, which has no bound."""
    forget_sharpness: PositiveFloat = 4.0
    """b, per nat: how sharply the ascent ends at δ. See :mod:`ofmu.methods.ofmu.loss`."""
    inner_update: Literal["sgd", "normalized", "adamw", "adamw_8bit"] = "adamw"
    """``sgd``: θ + η∇Φ (the paper). ``normalized``: a step of length η along ∇Φ. ``adamw``: AdamW on ∇Φ.
    ``adamw_8bit``: see ``outer_update``."""
    inner_lr: PositiveFloat | None = None
    """η_in, the learning rate of the ascent. With ``normalized``: the length of a step in parameter space. None: a
    range test on the target finds a rate that suits the model. See :mod:`ofmu.methods.ofmu.rates`."""
    inner_lr_scale: PositiveFloat = 1.0
    """Factor by which ``inner_lr``, or the rate that the range test found, is multiplied. A search over this factor
    suits every model."""
    outer_update: Literal["sgd", "adamw", "adamw_8bit"] = "adamw"
    """``sgd``: θ − η_out(g_r + 2ρ∇²Φ∇Φ) (the paper). ``adamw``: AdamW on the same direction. ``adamw_8bit``: AdamW with
    moments in 8 bits, which take 2 bytes a parameter instead of 8."""
    outer_lr: PositiveFloat | None = None
    """η_out, the learning rate of the outer descent. None: a range test on the target finds the rate."""
    outer_lr_scale: PositiveFloat = 1.0
    """Factor by which ``outer_lr``, or the rate that the range test found, is multiplied."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of the outer ``adamw``."""
    max_grad_norm: PositiveFloat | None = None
    """The norm to which the outer direction g_r + 2ρ∇²Φ∇Φ is clipped. None: no clipping."""
    decorrelation: Literal["cosine", "projection", "none"] = "cosine"
    """How the ascent is separated from the retain gradient while S > τ. ``cosine``: the paper's term −β·S in Φ.
    ``projection``: the part of g_f along g_r is removed, without β and without Hessian-vector products inside ∇Φ.
    ``none``: plain ascent of L_f."""
    similarity_weight: NonNegativeFloat = 0.1
    """β, the weight of the similarity S in Φ. Its unit is ``similarity_scale``."""
    similarity_scale: Literal["absolute", "gradients"] = "gradients"
    """The unit of β. ``absolute``: 1 (the paper). ``gradients``: ‖g_f‖·‖g_r‖, so that one β suits a whole run, from
    memorised to forgotten. See :mod:`ofmu.methods.ofmu.derivatives`."""
    similarity_threshold: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """τ, the similarity above which the ascent is decorrelated. −1: the paper's Φ. Where S ≤ τ, decorrelation costs
    nothing."""
    penalty_weight: NonNegativeFloat = 1e-3
    """ρ_0, the initial weight of ‖∇Φ‖² in the outer objective. 0: no penalty, and no product ∇²Φ·∇Φ."""
    penalty_growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Factor from ρ_k to ρ_{k+1}. 1: ρ is constant."""
    penalty_max: PositiveFloat | None = None
    """Upper bound of ρ_k. None: no bound."""
    regularization_interval: PositiveInt = 1
    """m: decorrelation and penalty act in every m-th outer step and in the inner steps before it, beginning with the
    first. The other rounds cost as little as those of ``first_order``, and their records say what those of
    ``first_order`` say: Φ is L_f there. ρ_k stays as it is. 1: in all of them (the paper). The idea is the lazy
    regularisation of StyleGAN2 (arXiv 1912.04958, section 3.1)."""
    derivative: Literal["central", "forward", "reverse_over_forward", "exact"] = "central"
    """How the Hessian-vector products in ∇Φ are computed. ``central`` and ``forward``: finite differences of gradients.
    ``reverse_over_forward``: exact, by a backward pass through a derivative in forward mode. ``exact``: exact, by
    double backward, which needs more memory and the attention ``eager``. At ``zero_stage`` 3 the last two hold whole
    weights and a whole vector on every rank for the length of a product. Where it is left out and
    ``engine.precision`` is ``bf16``, it is ``exact``: bf16 rounds the step of a difference away."""
    outer_derivative: Literal["central", "exact"] | None = None
    """How ∇²Φ·∇Φ is computed. ``exact``: by triple backward. None: ``exact`` if ``derivative`` is ``exact``, else a
    central difference of ∇Φ. A plain product H·∇Φ is computed by ``reverse_over_forward`` if ``derivative`` is."""
    product_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a minibatch's rows, the first ones, on which Hessian-vector products are computed. Such a product counts
    as that share of its gradient evaluations. g_f, g_r and S are of all rows. 1: all rows (the paper)."""
    stationarity_tolerance: NonNegativeFloat = 0.0
    """The run stops when ‖∇Φ‖ at an outer step is at most this value. 0: the run stops early only if ∇Φ vanishes. The
    residual must be that of the whole Φ: with decorrelation, only the rounds of ``regularization_interval`` test it."""
    diagnostics_every: PositiveInt = 10
    """Outer steps between two records of L_f, S and ‖∇Φ‖ where the outer step needs g_r alone: with a
    ``penalty_weight`` and a ``stationarity_tolerance`` of 0, and between the rounds of ``regularization_interval``,
    where ‖g_f‖ takes the place of ‖∇Φ‖. The first and the last outer step always have them."""
    derivative_check_every: NonNegativeInt = 20
    """Outer steps between two checks of the finite differences. A check estimates their error, and shortens their step
    if the error is large. The first difference inside ∇Φ is always checked, and so are the first one of ∇Φ with an open
    hinge and the first one with a closed hinge. 0: no further check."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_variant(cls, values: Any) -> Any:
        variant = values.get("variant") if isinstance(values, Mapping) else None
        return {**VARIANTS[variant], **values} if isinstance(variant, str) and variant in VARIANTS else values

    @classmethod
    def defaults_at(cls, precision: str) -> Mapping[str, Any]:
        """Return exact derivatives for bf16, which rounds the step of a finite difference away."""
        return {"derivative": "exact"} if precision == "bf16" else {}

    @property
    def decorrelates(self) -> bool:
        """Whether the ascent direction changes where S > τ."""
        return self.decorrelation == "projection" or (self.decorrelation == "cosine" and self.similarity_weight > 0)

    @property
    def uses_hvp(self) -> bool:
        """Whether a run can compute a Hessian-vector product."""
        inside = self.decorrelation == "cosine" and self.similarity_weight > 0
        return self.outer_steps > 0 and (inside or self.penalty_weight > 0)

    @property
    def has_inner_differences(self) -> bool:
        """Whether ∇Φ may contain finite differences."""
        return self.decorrelation == "cosine" and self.derivative in ("central", "forward")

    @property
    def outer_hvp_mode(self) -> str:
        """How ∇²Φ·∇Φ is computed: ``exact`` or ``central``. A forward difference is too inaccurate for this product."""
        return self.outer_derivative or ("exact" if self.derivative == "exact" else "central")

    @property
    def plain_products_in_forward_mode(self) -> bool:
        """Whether a product H·∇Φ of the outer step is computed by reverse over forward."""
        return self.derivative == "reverse_over_forward" and self.outer_derivative is None

    @property
    def uses_forward_mode(self) -> bool:
        """Whether products are computed by reverse over forward."""
        return self.uses_hvp and "reverse_over_forward" in self.hvp_modes

    @property
    def hvp_modes(self) -> set[str]:
        """The modes of all Hessian-vector products. Only with ``cosine`` does ∇Φ contain such products."""
        penalised = self.penalty_weight > 0
        if self.decorrelation == "cosine":
            return {self.derivative} | ({self.outer_hvp_mode} if penalised else set())
        if self.plain_products_in_forward_mode:
            return {self.derivative}
        return {self.outer_hvp_mode}

    def regularizes(self, outer_steps_taken: int) -> bool:
        """Return whether decorrelation and penalty act in the round after so many outer steps."""
        return outer_steps_taken % self.regularization_interval == 0

    def ascends_phi(self, outer_steps_taken: int) -> bool:
        """Return whether the round after so many outer steps ascends the whole Φ. Without decorrelation, Φ is L_f."""
        return self.regularizes(outer_steps_taken) or not self.decorrelates

    def computes_phi(self, outer_steps_taken: int) -> bool:
        """Return whether the outer step after so many others computes ∇Φ. The others compute g_r alone.

        ∇Φ is computed for the penalty, for the test of stationarity, and for the record.
        """
        is_penalised = self.penalty_weight > 0 and self.regularizes(outer_steps_taken)
        is_tested = self.stationarity_tolerance > 0 and self.ascends_phi(outer_steps_taken)
        is_last = outer_steps_taken + 1 == self.outer_steps
        return is_penalised or is_tested or is_last or outer_steps_taken % self.diagnostics_every == 0

    @property
    def needs_double_backward(self) -> bool:
        """Whether second derivatives are computed by double backward."""
        return self.uses_hvp and "exact" in self.hvp_modes

    def check(self, engine: EngineConfig, attention: str) -> None:
        """Check the Hessian-vector products against the engine and the attention, and ρ against its bound.

        Raises:
            ValueError: the engine or the attention cannot take the products, or ``penalty_max`` is too small.
        """
        if self.uses_forward_mode and engine.recomputes:
            raise ValueError(
                "method.derivative 'reverse_over_forward' cannot work with engine.gradient_checkpointing, which "
                "computes activations again without their derivatives: use 'exact', or switch checkpointing off"
            )
        if self.uses_hvp and engine.precision == "bf16" and not self.hvp_modes <= {"exact", "reverse_over_forward"}:
            raise ValueError(
                f"method.derivative '{self.derivative}' with outer_derivative '{self.outer_hvp_mode}' needs "
                "fp32 weights and compute, since bf16 rounds the perturbation away: set engine.precision to 'fp32', "
                "or both derivatives to 'exact', or outer_derivative to 'exact' beside 'reverse_over_forward'"
            )
        if self.needs_double_backward and attention == "sdpa":
            in_bf16 = ", the default in bf16," if engine.precision == "bf16" else ""
            raise ValueError(
                f"method.derivative 'exact'{in_bf16} needs a second derivative that fused attention lacks: "
                "set model.attention to 'eager' or 'auto'"
            )
        if self.product_share < 1 and self.uses_hvp and self.derivative == "forward":
            raise ValueError(
                "method.derivative 'forward' compares with the gradient of all rows, and method.product_share "
                f"{self.product_share} leaves rows out: set derivative to 'central', or product_share to 1"
            )
        if self.penalty_max is not None and self.penalty_max < self.penalty_weight:
            raise ValueError(
                f"method.penalty_max {self.penalty_max} is below method.penalty_weight {self.penalty_weight}: "
                "raise penalty_max, or leave penalty_max out"
            )

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = [*super().ineffective(), *self._ineffective_decorrelation()]
        level, margin = self.min_forget_loss, self.forget_margin
        if level is not None and margin is not None and level > margin:
            notes.append(
                f"method.min_forget_loss {level} may have no effect: the ascent of a row ends at "
                f"method.forget_margin {margin}"
            )
        if self.forget_margin is None and self._is_changed("forget_sharpness"):
            notes.append("method.forget_sharpness has no effect: method.forget_margin is not set")
        if self.penalty_weight == 0 and (self.penalty_growth != 1 or self.penalty_max is not None):
            notes.append("method.penalty_growth and penalty_max have no effect: method.penalty_weight is 0")
        if self.penalty_weight == 0 and self.outer_derivative is not None:
            notes.append("method.outer_derivative has no effect: method.penalty_weight is 0")
        if self.regularization_interval > 1 and self.penalty_weight == 0 and not self.decorrelates:
            notes.append("method.regularization_interval has no effect: there is no decorrelation and no penalty")
        if self.product_share < 1 and not self.uses_hvp:
            notes.append("method.product_share has no effect: no Hessian-vector product is computed")
        if self.outer_update == "sgd" and self.weight_decay > 0:
            notes.append("method.weight_decay has no effect: the outer update 'sgd' has no weight decay")
        has_differences = self.uses_hvp and not self.hvp_modes <= {"exact", "reverse_over_forward"}
        if self._is_changed("derivative_check_every") and not has_differences:
            notes.append("method.derivative_check_every has no effect: no finite difference is computed")
        return notes

    def cautions(self) -> list[str]:
        """Return one sentence, with the fix, for every choice of settings that is likely to spoil the result."""
        steps = self.outer_steps * self.inner_steps
        # Under sgd, and with a rate that the config states, the length of a step is not known before the run.
        if steps == 0 or self.inner_lr is not None or self.inner_update == "sgd":
            return []
        share = INNER_REACH * self.inner_lr_scale / steps
        if share <= LONG_STEP:
            return []
        enough = math.ceil(INNER_REACH * self.inner_lr_scale / (LONG_STEP * self.inner_steps))
        scale = math.floor(100 * LONG_STEP * steps / INNER_REACH) / 100
        way = "to the forget margin" if self.forget_margin is not None else "that the range test finds"
        return [
            f"Each inner step covers {share:.0%} of the straight way {way}, since method.outer_steps "
            f"({self.outer_steps}) times method.inner_steps ({self.inner_steps}) is small for method.inner_lr_scale "
            f"{self.inner_lr_scale:g}, and steps above {LONG_STEP:.0%} can destroy a pretrained model: set "
            f"method.outer_steps to {enough} or more, or method.inner_lr_scale to {scale:g} or less"
        ]

    def _is_changed(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def _ineffective_decorrelation(self) -> list[str]:
        notes: list[str] = []
        weight = self.similarity_weight
        if self.decorrelation == "cosine":
            if weight == 0 and self._is_changed("similarity_threshold"):
                notes.append("method.similarity_threshold has no effect: method.similarity_weight is 0")
            if weight > 0 and self.similarity_threshold == 1:
                notes.append(
                    "method.similarity_weight has no effect: with similarity_threshold 1 the hinge never opens"
                )
            return notes
        reason = f"method.decorrelation is '{self.decorrelation}'"
        notes += [
            f"method.{name} has no effect: {reason}"
            for name in ("similarity_weight", "similarity_scale")
            if self._is_changed(name)
        ]
        if self.decorrelation == "none" and self._is_changed("similarity_threshold"):
            notes.append(f"method.similarity_threshold has no effect: {reason}")
        if self.decorrelation == "projection" and self.similarity_threshold == 1:
            notes.append("method.decorrelation has no effect: with similarity_threshold 1 nothing is projected")
        if self.derivative == "forward":
            notes.append(f"method.derivative 'forward' has no effect: {reason}, so ∇Φ needs no Hessian-vector product")
        return notes
