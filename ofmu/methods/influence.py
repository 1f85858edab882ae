"""Influence unlearning: one Newton-like step away from the forget rows, with the inverse Hessian of WoodFisher."""

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
from ofmu.vectors.held import HeldVectors, Passes

RowT = TypeVar("RowT")


class InfluenceConfig(MethodConfig):
    """The settings of influence unlearning."""

    draws_minibatches: ClassVar[bool] = False

    name: Literal["influence"] = "influence"
    """Selects influence unlearning."""
    strength: NonNegativeFloat = 1.0
    """a, the factor of the step. 0: the target stays as it is."""
    damping: PositiveFloat = 1.0
    """λ, added to the diagonal of the Fisher matrix before the inversion."""
    fisher_rows: PositiveInt = 64
    """N, the number of retain rows of the Fisher matrix. Each row costs one gradient evaluation and the memory of one
    vector, which is sharded like the parameters."""
    batch_size: PositiveInt = 128
    """Rows per gradient evaluation of ∇L_f and ∇L_r, which run over all rows."""


@dataclass(frozen=True, kw_only=True)
class InfluenceRecord:
    """The record of the one step, computed before the step."""

    outer_step: int
    """1"""
    forget_loss: float
    """L_f over all forget rows."""
    retain_loss: float
    """L_r over all retain rows."""
    direction_norm: float
    """‖F⁻¹v‖"""


@register("influence")
class Influence(Method[RowT]):
    """θ ← θ + a F⁻¹v, v = (n_f/n)(∇L_f − ∇L_r), F = λI + (1/N) Σ g_i g_iᵀ over N retain rows' own gradients.

    n_f is the number of forget rows, and n the number of all rows. F⁻¹v is exact, by the Woodbury identity. The
    recursion of WoodFisher gives the same product. The public implementation of influence unlearning gives another
    product, since it carries one running vector through the recursion instead of all earlier vectors.
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

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return g_f, g_r and v; the gradients of the Fisher rows; and F⁻¹v."""
        rows = config.fisher_rows
        return HeldVectors(in_pass=3 + rows, between=4 + rows, exact_in_pass=3, exact_between=4)

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return the passes over all rows, and one pass per Fisher row."""
        if config.strength == 0:
            return Passes(), Passes()
        forget, retain = (math.ceil(rows / config.batch_size) for rows in (forget_rows, retain_rows))
        total = Passes(forget=forget, retain=retain + min(config.fisher_rows, retain_rows))
        return total, total

    def __init__(self, context: Context[RowT], config: InfluenceConfig) -> None:
        self._context, self._config, self._steps = context, config, 0

    @property
    def steps_taken(self) -> int:
        """0 before the step, 1 after the step."""
        return self._steps

    def rounds(self) -> Iterator[InfluenceRecord]:
        """Take the one step.

        Raises:
            NonFiniteLossError: a loss or the norm of the step is NaN or infinite.
        """
        if self._steps or self._config.strength == 0:
            return
        engine = self._context.engine
        with engine.cost_tracker.phase("outer"):
            record, direction = self._direction()
            space = engine.space
            space.add_to_parameters(direction, self._config.strength)
            space.sync_model()
        self._steps = 1
        yield record

    def _direction(self) -> tuple[InfluenceRecord, Vector]:
        """Return the record and F⁻¹v."""
        engine, task, config = self._context.engine, self._context.task, self._config
        g_f, forget_loss = mean_gradient(engine, task.loss, task.forget_rows, config.batch_size)
        g_r, retain_loss = mean_gradient(engine, task.loss, task.retain_rows, config.batch_size)
        forget_share = len(task.forget_rows) / (len(task.forget_rows) + len(task.retain_rows))
        v = engine.space.combine((forget_share, g_f), (-forget_share, g_r))
        sampler = MinibatchSampler(task.retain_rows, config.fisher_rows, self._context.seed, "fisher")
        gradients = [engine.gradient(task.loss, [row])[1] for row in sampler.draw()]
        direction = inverse_fisher_product(engine.space, gradients, config.damping, v)
        norm = engine.space.norm(direction)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"The norm of the influence step became {norm}: raise method.damping")
        record = InfluenceRecord(outer_step=1, forget_loss=forget_loss, retain_loss=retain_loss, direction_norm=norm)
        return record, direction

    def state(self) -> dict[str, Any]:
        """Return whether the step was taken, as a count of steps."""
        return {"steps": self._steps}

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters. These are the live tensors, no copies."""
        return {"theta": self._context.engine.space.masters()}

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint, bit for bit as the interrupted run would have continued."""
        self._context.engine.space.restore(vectors["theta"])
        self._steps = int(state["steps"])


def inverse_fisher_product(space: VectorSpace, gradients: list[Vector], damping: float, vector: Vector) -> Vector:
    """Return (λI + (1/N) G Gᵀ)⁻¹ v = (v − G (λN I + GᵀG)⁻¹ Gᵀv) / λ; collective.

    Ranks exchange only the N × N numbers of GᵀG and the N numbers of Gᵀv.

    Args:
        space: the space of the vectors.
        gradients: the N columns of G.
        damping: λ.
        vector: v.
    """
    count = len(gradients)
    gram = np.zeros((count, count))
    for row, gradient in enumerate(gradients):
        gram[row, : row + 1] = space.dots(*((gradient, other) for other in gradients[: row + 1]))
    gram += np.tril(gram, -1).T
    products = np.asarray(space.dots(*((gradient, vector) for gradient in gradients)))
    weights = np.linalg.solve(damping * count * np.eye(count) + gram, products)
    result = space.combine((1 / damping, vector))
    for gradient, weight in zip(gradients, weights.tolist(), strict=True):
        space.add(result, gradient, -weight / damping)
    return result
