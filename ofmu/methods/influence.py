"""Influence unlearning: one Newton-like step away from the forget rows, with WoodFisher's inverse Hessian."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from ofmu.config.base import NonNegativeFloat, PositiveFloat, PositiveInt
from ofmu.data.sampler import MinibatchSampler
from ofmu.errors import NonFiniteLossError
from ofmu.methods import register
from ofmu.methods.base import Context, Method
from ofmu.methods.config import MethodConfig
from ofmu.methods.saliency import mean_gradient
from ofmu.vectors.base import Vector, VectorSpace

RowT = TypeVar("RowT")


class InfluenceConfig(MethodConfig):
    """Influence unlearning's settings."""

    name: Literal["influence"] = "influence"
    strength: NonNegativeFloat = 1.0
    """a, the step's length; 0 leaves the target untouched."""
    damping: PositiveFloat = 1.0
    """λ, what the Fisher matrix is lifted by before it is inverted."""
    fisher_rows: PositiveInt = 64
    """N, retain rows of which the Fisher matrix is made. Each costs a gradient evaluation and one vector of memory,
    sharded as the parameters are."""
    batch_size: PositiveInt = 128
    """Rows per gradient evaluation of the two whole sets."""


@dataclass(frozen=True, kw_only=True)
class InfluenceRecord:
    """What the one step saw, before it was taken."""

    outer_step: int
    forget_loss: float
    retain_loss: float
    direction_norm: float
    """‖F⁻¹v‖"""


@register("influence")
class Influence(Method[RowT]):
    """θ ← θ + a F⁻¹v, v = (n_f/n)(∇L_f − ∇L_r), F = λI + (1/N) Σ g_i g_iᵀ over N retain rows' own gradients.

    F⁻¹v is exact, by the Woodbury identity, as WoodFisher's recursion is. The public implementation of unlearning
    carries one running vector through that recursion in place of all earlier ones, which gives another product.
    """

    Config = InfluenceConfig
    title = "Influence unlearning (WoodFisher)"
    source = "Jia et al., arXiv 2304.04934, appendix; Singh & Alistarh (WoodFisher), arXiv 2004.14340"
    tasks = frozenset({"language", "vision"})
    space: ClassVar = {
        "strength": {"low": 0.1, "high": 100.0, "log": True},
        "damping": {"low": 1e-3, "high": 1.0, "log": True},
    }
    published: ClassVar = {"damping": 1.0}
    no_op_config: ClassVar = {"strength": 0.0}

    def __init__(self, context: Context[RowT], settings: InfluenceConfig) -> None:
        self._context, self._settings, self._steps = context, settings, 0

    @property
    def steps_taken(self) -> int:
        """1 once the step was taken."""
        return self._steps

    def rounds(self) -> Iterator[InfluenceRecord]:
        """Take the one step.

        Raises:
            NonFiniteLossError: the step's norm is NaN or infinite.
        """
        if self._steps or self._settings.strength == 0:
            return
        engine = self._context.engine
        with engine.cost_tracker.phase("outer"):
            record, step = self._step()
            space = engine.space
            space.add(space.masters(), step, self._settings.strength)
            space.sync_model()
        self._steps = 1
        yield record

    def _step(self) -> tuple[InfluenceRecord, Vector]:
        engine, task, settings = self._context.engine, self._context.task, self._settings
        forget, forget_loss = mean_gradient(engine, task.loss, task.forget_rows, settings.batch_size)
        retain, retain_loss = mean_gradient(engine, task.loss, task.retain_rows, settings.batch_size)
        share = len(task.forget_rows) / (len(task.forget_rows) + len(task.retain_rows))
        towards = engine.space.combine((share, forget), (-share, retain))
        sampler = MinibatchSampler(task.retain_rows, settings.fisher_rows, self._context.seed, "fisher")
        gradients = [engine.gradient(task.loss, [row])[1] for row in sampler.draw()]
        step = inverse_fisher_product(engine.space, gradients, settings.damping, towards)
        norm = engine.space.norm(step)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"The influence step's norm became {norm}: raise method.damping")
        record = InfluenceRecord(outer_step=1, forget_loss=forget_loss, retain_loss=retain_loss, direction_norm=norm)
        return record, step

    def state(self) -> dict[str, Any]:
        """Return whether the step was taken."""
        return {"steps": self._steps}

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters."""
        return {"theta": self._context.engine.space.masters()}

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint as if nothing had happened."""
        self._context.engine.space.restore(vectors["theta"])
        self._steps = int(state["steps"])


def inverse_fisher_product(space: VectorSpace, gradients: list[Vector], damping: float, vector: Vector) -> Vector:
    """Return (λI + (1/N) G Gᵀ)⁻¹ v = (v − G (λN I + GᵀG)⁻¹ Gᵀv) / λ; only N × N numbers leave their shards."""
    count = len(gradients)
    gram = np.zeros((count, count))
    for row, gradient in enumerate(gradients):
        gram[row, : row + 1] = space.dots(*((gradient, other) for other in gradients[: row + 1]))
    gram += np.tril(gram, -1).T
    along = np.asarray(space.dots(*((gradient, vector) for gradient in gradients)))
    weights = np.linalg.solve(damping * count * np.eye(count) + gram, along)
    result = space.combine((1 / damping, vector))
    for gradient, weight in zip(gradients, weights.tolist(), strict=True):
        space.add(result, gradient, -weight / damping)
    return result
