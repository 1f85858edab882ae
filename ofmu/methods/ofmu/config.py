"""OFMU (Asif & Amiri, arXiv 2509.22483): the two loops of :mod:`ofmu.methods.ofmu.bilevel` as one method among others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from ofmu.methods import register
from ofmu.methods.base import Context, Method
from ofmu.methods.ofmu.bilevel import Bilevel
from ofmu.run_config import MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveFloat

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig

RowT = TypeVar("RowT")


class OfmuConfig(MethodConfig):
    """OFMU's settings, named as in the paper's Algorithm 1 (arXiv 2509.22483)."""

    name: Literal["ofmu"] = "ofmu"
    outer_steps: NonNegativeInt = 30
    """K; 0 leaves the target untouched."""
    inner_steps: NonNegativeInt = 2
    """T"""
    forget_level: PositiveFloat | None = 3.0
    """δ, nats per answer token or image: rows whose loss reaches it are let go of; None: the paper's unbounded L_f."""
    forget_sharpness: PositiveFloat = 4.0
    """b, per nat: how sharply; see :mod:`ofmu.methods.ofmu.loss`."""
    inner_update: Literal["sgd", "normalized", "adamw"] = "normalized"
    """``sgd``: θ + η∇Φ (the paper); ``normalized``: a step of length η along ∇Φ; ``adamw``."""
    inner_lr: PositiveFloat = 0.05
    """η_in"""
    outer_update: Literal["sgd", "adamw"] = "adamw"
    outer_lr: PositiveFloat = 1e-3
    """η_out"""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = None
    """Clips the outer direction g_r + 2ρ∇²Φ∇Φ to this norm."""
    decorrelation: Literal["cosine", "projection", "none"] = "cosine"
    """What keeps the ascent apart from the retain gradient while S > τ: ``cosine``, the paper's term −β·S in Φ;
    ``projection``, the part of g_f along g_r taken out, without β and without products inside the ascent;
    ``none``, plain ascent of L_f."""
    similarity_weight: NonNegativeFloat = 0.1
    """β"""
    similarity_scale: Literal["absolute", "gradients"] = "gradients"
    """What β multiplies besides S: nothing (the paper), or ‖g_f‖·‖g_r‖, so that one β suits a run from memorised to
    forgotten; see :mod:`ofmu.methods.ofmu.derivatives`."""
    similarity_threshold: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """τ; −1 is the paper's formula. At 0 gradients that agree are decorrelated, and those that differ cost nothing."""
    penalty_weight: NonNegativeFloat = 1e-3
    """ρ_0"""
    penalty_growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    penalty_max: PositiveFloat | None = None
    derivative: Literal["central", "forward", "exact"] = "central"
    outer_derivative: Literal["central", "exact"] | None = None
    """How ∇²Φ·∇Φ is made; None: exact where ``derivative`` is exact, else a central difference of ∇Φ."""
    stationarity_tolerance: NonNegativeFloat = 0.0
    """Stop once ‖∇Φ‖ at an outer step is at most this; 0 never stops early."""
    derivative_check_every: NonNegativeInt = 0
    """Every so many outer steps, log the relative change of the products when the step c becomes 2c; 0: never."""

    @property
    def decorrelates(self) -> bool:
        """Whether S > τ changes the ascent direction."""
        return self.decorrelation == "projection" or (self.decorrelation == "cosine" and self.similarity_weight > 0)

    @property
    def products(self) -> bool:
        """Whether a run under these settings can ever take a Hessian-vector product."""
        inside = self.decorrelation == "cosine" and self.similarity_weight > 0
        return self.outer_steps > 0 and (inside or self.penalty_weight > 0)

    @property
    def outer_way(self) -> str:
        """The way ∇²Φ·∇Φ is made: ``exact`` or ``central``, never a forward difference."""
        return self.outer_derivative or ("exact" if self.derivative == "exact" else "central")

    @property
    def ways(self) -> set[str]:
        """The ways in which products are made, inside ∇Φ (which ``cosine`` alone needs) and at the outer step."""
        return {self.derivative, self.outer_way} if self.decorrelation == "cosine" else {self.outer_way}

    @property
    def exact(self) -> bool:
        """Whether second derivatives are taken by double backward."""
        return self.products and "exact" in self.ways

    def refuse_impossible(self, config: UnlearnConfig) -> None:
        """Raise ValueError for products that the engine cannot take."""
        engine = config.engine
        if self.exact and engine.backend == "deepspeed" and engine.zero_stage == 3:
            raise ValueError(
                "method.derivative 'exact' cannot work at engine.zero_stage 3, where parameters are sharded during "
                "the double backward: use 'central', or a zero_stage of at most 2"
            )
        if self.products and engine.precision == "bf16" and self.ways != {"exact"}:
            raise ValueError(
                f"method.derivative '{self.derivative}' with outer_derivative '{self.outer_way}' needs "
                "fp32 weights and compute, since bf16 rounds the perturbation away: set engine.precision to 'fp32', "
                "or both derivatives to 'exact' at a zero_stage of at most 2"
            )
        if self.exact and config.model.attention == "sdpa":
            raise ValueError(
                "method.derivative 'exact' needs a second derivative that fused attention lacks: "
                "set model.attention to 'eager' or 'auto'"
            )
        if self.penalty_max is not None and self.penalty_max < self.penalty_weight:
            raise ValueError(
                f"method.penalty_max {self.penalty_max} is below method.penalty_weight {self.penalty_weight}: "
                "raise it or leave it out"
            )

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that a run under these will ignore."""
        notes = self._without_effect_on_decorrelation()
        if self.forget_level is None and self._is_changed("forget_sharpness"):
            notes.append("method.forget_sharpness has no effect: method.forget_level is not set")
        if self.penalty_weight == 0 and (self.penalty_growth != 1 or self.penalty_max is not None):
            notes.append("method.penalty_growth and penalty_max have no effect: method.penalty_weight is 0")
        if self.penalty_weight == 0 and self.outer_derivative is not None:
            notes.append("method.outer_derivative has no effect: method.penalty_weight is 0")
        if self.outer_update == "sgd" and self.weight_decay > 0:
            notes.append("method.weight_decay has no effect: the outer update 'sgd' applies none")
        if self.derivative_check_every and self.decorrelation != "cosine":
            notes.append("method.derivative_check_every has no effect: it checks ∇S, which is not taken")
        elif self.derivative_check_every and (not self.products or self.derivative == "exact"):
            notes.append("method.derivative_check_every has no effect: no finite difference is taken")
        return notes

    def _is_changed(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def _without_effect_on_decorrelation(self) -> list[str]:
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
        because = f"method.decorrelation is '{self.decorrelation}'"
        notes += [
            f"method.{name} has no effect: {because}"
            for name in ("similarity_weight", "similarity_scale")
            if self._is_changed(name)
        ]
        if self.decorrelation == "none" and self._is_changed("similarity_threshold"):
            notes.append(f"method.similarity_threshold has no effect: {because}")
        if self.decorrelation == "projection" and self.similarity_threshold == 1:
            notes.append("method.decorrelation has no effect: with similarity_threshold 1 nothing is projected")
        if self.derivative == "forward":
            notes.append(f"method.derivative 'forward' has no effect: {because}, which takes no product inside")
        return notes


@register("ofmu")
class OFMU(Bilevel[RowT], Method[RowT]):
    """Inner ascent of Φ = L_f − β·max(0, S − τ), L_f bounded at δ, outer descent of F = L_r + ρ‖∇Φ‖²."""

    Settings = OfmuConfig
    title = "OFMU"
    source = "Asif & Amiri, arXiv 2509.22483, Algorithm 1"
    tasks = frozenset({"language", "vision"})
    # docs/results.md, "What OFMU needs": few outer steps leave the damage of the ascent, whatever the other settings
    space: ClassVar = {
        "penalty_weight": {"low": 1e-5, "high": 1e-2, "log": True},
        "similarity_weight": {"low": 1e-2, "high": 3.0, "log": True},
        "similarity_threshold": {"low": -0.5, "high": 0.5},
        "forget_level": {"low": 1.0, "high": 5.0},
        "inner_steps": {"low": 1, "high": 4},
        "outer_steps": {"low": 12, "high": 60, "log": True},
        "inner_lr": {"low": 1e-2, "high": 1e-1, "log": True},
        "outer_lr": {"low": 1e-4, "high": 2e-3, "log": True},
    }
    # the paper states neither learning rate, nor β, nor ρ's schedule: these numbers are this project's choice
    published: ClassVar[dict[str, Any]] = {
        "forget_level": None,
        "similarity_scale": "absolute",
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
    untouched: ClassVar = {"outer_steps": 0}

    def __init__(self, context: Context[RowT], settings: OfmuConfig) -> None:
        task = context.task
        rows = (task.forget_rows, task.retain_rows)
        Bilevel.__init__(self, context.engine, task.loss, task.loss, *rows, settings, context.seed)

    @property
    def total_rounds(self) -> int:
        """K, one per outer step."""
        return self._method.outer_steps
