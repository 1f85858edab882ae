"""RepSelect: ascent along the forget gradient of the MLP matrices, whose top principal components are collapsed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ofmu.config.base import NonNegativeInt, PositiveFloat, PositiveInt
from ofmu.data.rows import Example
from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError, NonFiniteLossError
from ofmu.methods import register
from ofmu.methods.base import Context, Method
from ofmu.methods.config import MethodConfig
from ofmu.methods.range_test import FEWEST_PASSES, MOST_PASSES, mean_loss, reach_along, spread
from ofmu.methods.saliency import mean_gradient
from ofmu.models.config import AdapterConfig
from ofmu.vectors.base import Vector, by_parameter
from ofmu.vectors.held import HeldVectors, Passes

_EXACT_UP_TO = 1024
"""Smaller side of a matrix up to which its singular vectors are computed exactly."""
_OVERSAMPLING = 16
"""Further random projections of a larger matrix, as Halko et al. (arXiv 0909.4061, section 4.2) advise."""
_ROUNDING = 1e-5
"""Share of the gradient's norm below which nothing but rounding errors of fp32 is left."""
_RECORDED = ("gradient_norm", "kept_share", "length_share")
"""What a record tells of the direction, which a checkpoint keeps."""


class RepselectConfig(MethodConfig):
    """The settings of RepSelect."""

    draws_minibatches: ClassVar[bool] = False

    name: Literal["repselect"] = "repselect"
    """Selects RepSelect."""
    steps: NonNegativeInt = 10
    """Steps along the direction. Each of them is a round. 0: the target stays as it is."""
    rise: PositiveFloat = 1.0
    """Nats by which all steps together raise the loss of forget rows. A range test on the target finds the length of a
    step. The authors state a factor of the raw gradient, which suits one model."""
    components: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Share of the principal components of a matrix that are collapsed, of the smaller side of the matrix. ``soft``
    takes at least two, since one would be its own unit."""
    collapse: Literal["soft", "hard"] = "soft"
    """``soft``: on each side of a matrix, each of these components is divided by its singular value, in units of the
    smallest of them. ``hard``: they are removed."""
    components_of: Literal["forget", "retain"] = "forget"
    """The rows whose gradient has these components. ``retain`` costs a pass over the retain rows too."""
    matrices: str = "mlp"
    """Text in the names of the weight matrices that change. The authors change those of the MLP blocks."""
    batch_size: PositiveInt = 128
    """Rows per gradient evaluation. The gradients run over all rows, and the range test reads so many."""

    def check(self, engine: EngineConfig, attention: str) -> None:
        """Check that something of the gradient is left.

        Raises:
            ValueError: all components are removed.
        """
        if self.collapse == "hard" and self.components == 1:
            raise ValueError(
                "method.collapse 'hard' with method.components 1 removes the whole gradient: lower components, or set "
                "collapse to 'soft'"
            )


@dataclass(frozen=True, kw_only=True)
class RepselectRecord:
    """The record of one step."""

    outer_step: int
    """Number of steps taken."""
    forget_loss: float
    """Mean loss of the range test's forget rows after the step."""
    gradient_norm: float
    """Norm of ∇L_f over the chosen matrices, at the target."""
    kept_share: float
    """Norm of the collapsed gradient, as a share of ``gradient_norm``."""
    moved_share: float
    """‖θ − θ_0‖ as a share of ‖θ_0‖."""


@dataclass(frozen=True)
class _Direction:
    """The way of all steps together, and what a record tells of it."""

    vector: Vector
    gradient_norm: float
    kept_share: float
    length_share: float
    """Its length as a share of ‖θ_0‖."""


@register("repselect")
class RepSelect(Method[Example]):
    """θ ← θ + η d, where d is ∇L_f(θ_0) of each MLP matrix with its top principal components collapsed.

    The gradient is computed once, over all rows, and a range test finds η. With the default ``components_of``, a
    collapsed component of singular value s has the value s_min²/s in d, where s_min is the smallest collapsed one. The
    authors first train an adapter on the forget rows, which elicits the knowledge, and compute the gradient with it;
    here it is computed without.
    """

    Config = RepselectConfig
    title = "RepSelect"
    source = "Sondej et al., arXiv 2606.17168; its single-gradient form, without the eliciting adapter"
    space: ClassVar = {
        "rise": {"low": 0.2, "high": 5.0, "log": True},
        "components": {"low": 0.02, "high": 0.5, "log": True},
        "components_of": {"choices": ["forget", "retain"]},
    }
    published: ClassVar = {"components": 0.125, "collapse": "soft", "components_of": "forget"}

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return d, and the retain gradient beside it."""
        # Beside d, the retain gradient during passes, and the parameters during the range test.
        more = 1 if config.components_of == "retain" else 0
        return HeldVectors(kept=1, in_pass=more, between=1, exact_in_pass=more, exact_between=1)

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return a pass over the forget rows, and one over the retain rows if their components are used.

        The range test and the loss after each step take forward passes.
        """
        if config.steps == 0:
            return Passes(), Passes()
        total = Passes(forget=math.ceil(forget_rows / config.batch_size))
        if config.components_of == "retain":
            total = replace(total, retain=math.ceil(retain_rows / config.batch_size))
        bounds = (FEWEST_PASSES, MOST_PASSES)
        least, most = (replace(total, forget_forward=count + config.steps) for count in bounds)
        return least, most

    @classmethod
    def check_model(cls, config: RepselectConfig, description: Mapping[str, Any], adapter: AdapterConfig) -> None:
        """Check that the model has weight matrices of the chosen names, and that they are trained themselves."""
        # Transformers takes seconds to import.
        from ofmu.models.meta import trained_shapes

        shapes = trained_shapes(description, adapter)
        if shapes is not None:
            _chosen_matrices(config.matrices, shapes)

    def __init__(self, context: Context[Example], config: RepselectConfig) -> None:
        self._context, self._config, self._steps = context, config, 0
        self._direction: _Direction | None = None
        self._tested = spread(context.task.forget_rows, config.batch_size)
        self._names = _chosen_matrices(config.matrices, context.engine.space.shapes())

    @property
    def steps_taken(self) -> int:
        """Number of steps taken."""
        return self._steps

    @property
    def total_rounds(self) -> int:
        """The number of steps."""
        return self._config.steps

    def rounds(self) -> Iterator[RepselectRecord]:
        """Take the remaining steps. Yield after each of them.

        Raises:
            ConfigError: nothing of the gradient is left, or the range test finds no length.
            NonFiniteLossError: a loss or the norm of a gradient is NaN or infinite.
        """
        engine, steps = self._context.engine, self._config.steps
        while self._steps < steps:
            with engine.cost_tracker.phase("outer"):
                if self._direction is None:
                    self._direction = self._find_direction()
                found = self._direction
                engine.space.add_to_parameters(found.vector, 1 / steps)
                engine.space.sync_model()
                self._steps += 1
                loss = mean_loss(engine, self._context.task.loss, self._tested)
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"Step {self._steps} of {steps} failed because the loss of the forget rows became {loss}: lower "
                    "method.rise"
                )
            yield RepselectRecord(
                outer_step=self._steps,
                forget_loss=loss,
                gradient_norm=found.gradient_norm,
                kept_share=found.kept_share,
                moved_share=found.length_share * self._steps / steps,
            )

    def _find_direction(self) -> _Direction:
        engine, task, config = self._context.engine, self._context.task, self._config
        space = engine.space
        vector, _ = mean_gradient(engine, task.loss, task.forget_rows, config.batch_size)
        retain: Vector | None = None
        if config.components_of == "retain":
            retain, _ = mean_gradient(engine, task.loss, task.retain_rows, config.batch_size)
        for name, gradient in (("forget", vector), ("retain", retain)):
            if gradient is not None and not math.isfinite(norm := space.norm(gradient)):
                raise NonFiniteLossError(
                    f"The norm of the {name} gradient became {norm}: check the target and the rows"
                )
        before = self._collapse(vector, retain)
        del gradient, retain
        after = space.norm(vector)
        # What rounding leaves of a collapsed gradient is no direction.
        if after <= _ROUNDING * before:
            raise ConfigError(
                f"method.components {config.components} leaves nothing of the forget gradient: lower it, or set "
                "method.collapse to 'soft'"
            )
        reach = reach_along(engine, task.loss, self._tested, vector, config.rise, "lower method.rise")
        for part in vector:
            part.mul_(reach)
        return _Direction(vector, before, after / before, reach * after / space.parameter_norm())

    @torch.no_grad()
    def _collapse(self, vector: Vector, retain: Vector | None) -> float:
        """Collapse the matrices of a gradient in place, and clear the rest of it. Return the norm of the matrices."""
        space, config = self._context.engine.space, self._config
        segments = by_parameter(space.segments())
        square = 0.0
        gathered = space.gather_each(vector)
        others = gathered if retain is None else space.gather_each(retain)
        for name, gradient in gathered:
            basis = gradient if retain is None else next(others)[1]
            chosen, collapsed = name in self._names, gradient
            if chosen:
                square += float(gradient.double().square().sum())
                collapsed = collapse_components(gradient, basis, config.components, soft=config.collapse == "soft")
            for segment in segments[name]:
                own = vector[segment.tensor].narrow(0, segment.offset, segment.length)
                values = collapsed.reshape(-1).narrow(0, segment.start, segment.length)
                own.copy_(values) if chosen else own.zero_()
        # The components of a matrix inside a mask have values outside the mask too.
        space.clear_frozen(vector)
        return math.sqrt(square)

    def state(self) -> dict[str, Any]:
        """Return the number of steps, and what a record tells of the direction."""
        found = self._direction
        values = None if found is None else {name: getattr(found, name) for name in _RECORDED}
        return {"steps": self._steps, "direction": values}

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters and the direction. These are the live tensors, no copies."""
        direction = {} if self._direction is None else {"direction": self._direction.vector}
        return {"theta": self._context.engine.space.masters(), **direction}

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint, bit for bit as the interrupted run would have continued."""
        self._context.engine.space.restore(vectors["theta"])
        self._steps = int(state["steps"])
        self._direction = None
        if state["direction"] is not None:
            self._direction = _Direction(vectors["direction"], **state["direction"])


def _chosen_matrices(part: str, shapes: Mapping[str, torch.Size]) -> set[str]:
    """Return the names of the weight matrices, or batches of them, that hold ``part``.

    Raises:
        ConfigError: there is none, or adapters are trained in their place.
    """
    matrices = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if any("lora_" in name for name in matrices):
        raise ConfigError(
            "RepSelect collapses gradients of weight matrices, and model.adapter trains factors of them: set "
            "model.adapter.kind to 'none'"
        )
    chosen = {name for name in matrices if part in name}
    if not chosen:
        example = "mlp" if any("mlp" in name for name in matrices) else matrices[-1]
        raise ConfigError(
            f"method.matrices '{part}' is in no name of a trained weight matrix: set a part of a name such as "
            f"'{example}'"
        )
    return chosen


def collapse_components(gradient: Tensor, basis_of: Tensor, share: float, *, soft: bool) -> Tensor:
    """Collapse the components of a gradient along the top singular vectors of a matrix, on both sides.

    Args:
        gradient: a matrix, or a batch of matrices.
        basis_of: the matrix, of the same shape, whose singular vectors are collapsed.
        share: the number of singular vectors, as a share of the smaller side.
        soft: whether a component is divided by its singular value in units of the smallest of them. False: it is
            removed.
    """
    count = max(2 if soft else 1, round(share * min(gradient.shape[-2:])))
    left, values, right = _singular_vectors(basis_of, count)
    # Directions that the rows do not span have a singular value of rounding errors alone: they stay as they are.
    spanned = values > torch.finfo(values.dtype).eps * max(gradient.shape[-2:]) * values.amax(-1, keepdim=True)
    smallest = values.masked_fill(~spanned, torch.inf).amin(-1, keepdim=True)
    removed = torch.where(spanned, 1 - smallest / values if soft else torch.ones_like(values), 0)
    result = gradient - ((gradient @ right) * removed.unsqueeze(-2)) @ right.mT
    return result - left @ (removed.unsqueeze(-1) * (left.mT @ result))


def _singular_vectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the top ``count`` left singular vectors, singular values and right singular vectors."""
    if min(matrix.shape[-2:]) <= _EXACT_UP_TO:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[..., :count], values[..., :count], right.mT[..., :count]
    # The random projections of a large matrix are the same on every rank and in every run.
    devices = [matrix.device] if matrix.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=min(count + _OVERSAMPLING, min(matrix.shape[-2:])))
    return left[..., :count], values[..., :count], right[..., :count]
