"""RMU: hidden states of forget rows move to one random vector, and those of retain rows stay as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ofmu.config.base import NonNegativeInt, PositiveFloat
from ofmu.data.collate import collate
from ofmu.data.rows import Example
from ofmu.engine.base import RowFunction
from ofmu.errors import ConfigError
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.frozen_target import KEPT_VECTORS, VECTORS_IN_OUTPUTS, FrozenTarget
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig, SingleLoopMethod
from ofmu.methods.token_losses import TextTask
from ofmu.models.config import AdapterConfig
from ofmu.models.sizes import sizes_of
from ofmu.vectors.held import HeldVectors, Passes


class RmuConfig(SingleLoopConfig):
    """The settings of RMU."""

    name: Literal["rmu"] = "rmu"
    """Selects RMU."""
    layer: NonNegativeInt | Annotated[float, Field(gt=0, le=1)] = 0.5
    """The block whose output moves. An integer is the index of the block, from 0. A number with a decimal point is a
    share of the depth."""
    coefficient: PositiveFloat = 2.0
    """Norm of the vector c to which forget states move. The norm should exceed the norm of the hidden states."""


class HiddenStateLoss:
    """Mean squared distance of hidden states from given states: over the width, the answer tokens, then the rows.

    Args:
        hidden_states: returns the hidden states of each row, of shape (answer tokens, width).
        goal: returns the states that a row should have, of the same shape or of shape (width,).
    """

    def __init__(self, hidden_states: RowFunction[Example], goal: Callable[[Example], Tensor]) -> None:
        self._hidden_states, self._goal = hidden_states, goal

    def size(self, row: Example) -> int:
        """Return 1, since the mean is over rows."""
        return 1

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the summed loss of the rows."""
        states = self._hidden_states(module, rows, device)
        losses = [(h - self._goal(row).to(h)).square().mean() for h, row in zip(states, rows, strict=True)]
        return torch.stack(losses).sum()


def hidden_state_reader(layer: int, pad_id: int, options: Mapping[str, Any]) -> RowFunction[Example]:
    """Return a function that returns each row's hidden states, of shape (answer tokens, width), at least in fp32.

    Args:
        layer: index of the block whose output is read. The output of the last block is read after the final norm.
        pad_id: the padding token.
        options: further arguments of the model's forward call.
    """

    def hidden_states(module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> list[Tensor]:
        batch = collate(rows, pad_id, device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = module(**inputs, use_cache=False, output_hidden_states=True, **options).hidden_states[layer + 1]
        states = states if states.dtype == torch.float64 else states.float()
        return [row_states[row.answer_start : len(row.input_ids)] for row_states, row in zip(states, rows, strict=True)]

    return hidden_states


@register("rmu")
class RMU(SingleLoopMethod[Example]):
    """L = γ MSE(h(forget), c) + α MSE(h(retain), h_0(retain)), h the output of one block, c = coefficient·u/‖u‖.

    The seed draws u ~ U(0, 1)^d once. h_0 are the target's hidden states. Only answer tokens count. All parameters up
    to the block are trained, where the authors train a few matrices. The parameters behind the block never change but
    for weight decay.
    """

    Config = RmuConfig
    title = "RMU"
    source = "Li et al. (WMDP), arXiv 2403.03218, section 4; answer mask of open-unlearning"
    tasks = frozenset({"language"})
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "retain_weight": {"low": 0.3, "high": 1200.0, "log": True},
        "coefficient": {"low": 0.5, "high": 300.0, "log": True},
        "layer": {"low": 0.2, "high": 0.8},
    }
    published: ClassVar = {
        "layer": 7,
        "coefficient": 6.5,
        "forget_weight": 1.0,
        "retain_weight": 1200.0,
        "lr": 5e-5,
        "steps": 150,
    }
    config: RmuConfig
    task: TextTask

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return the vectors of one loop, and θ_0."""
        held = super().held_vectors(config)
        between = max(held.between, 1 + VECTORS_IN_OUTPUTS)
        return replace(held.with_kept(KEPT_VECTORS), between=between, exact_between=VECTORS_IN_OUTPUTS)

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return the passes of one loop, and the target's passes of the retain rows."""
        least, most = super().passes(config, forget_rows, retain_rows)
        target = Passes(retain_forward=config.steps if config.retain_weight > 0 else 0)
        return least + target, most + target

    @classmethod
    def check_model(cls, config: RmuConfig, description: Mapping[str, Any], adapter: AdapterConfig) -> None:
        """Check that the model has the block."""
        block_index(config.layer, sizes_of(description).layers)

    def __init__(self, context: Context[Example], config: RmuConfig) -> None:
        super().__init__(context, config)
        model: Any = self.engine.model
        # RMU needs no logits, and with a large vocabulary the logits take most of the memory.
        parameters = inspect.signature(type(model).forward).parameters
        options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        layer = block_index(config.layer, model.config.num_hidden_layers)
        self._hidden_states = hidden_state_reader(layer, self.task.loss.pad_id, options)
        u = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(context.seed))
        # The seed gives the same vector on every device, since it is drawn on the CPU.
        self.steering_vector = (config.coefficient * u / u.norm()).to(self.engine.device)
        self._forget_loss = HiddenStateLoss(self._hidden_states, lambda row: self.steering_vector)
        self._target = FrozenTarget(self.engine, self.task.loss)

    def forget_loss(self, rows: Sequence[Example]) -> HiddenStateLoss:
        """Return the distance from the steering vector c."""
        return self._forget_loss

    def retain_loss(self, rows: Sequence[Example]) -> HiddenStateLoss:
        """Return the distance from the target's hidden states, after one forward pass of the target; collective."""
        target_states = self._target.outputs(self._hidden_states, rows)
        return HiddenStateLoss(self._hidden_states, lambda row: target_states[id(row)])


def block_index(layer: int | float, depth: int) -> int:
    """Return the index of a block, from 0.

    Args:
        layer: the index as an integer, or a share of the depth as a float.
        depth: the number of blocks of the model.

    Raises:
        ConfigError: the model has no such block.
    """
    if isinstance(layer, float):
        return max(1, round(layer * depth)) - 1
    if layer >= depth:
        raise ConfigError(
            f"method.layer {layer} does not exist in a model of {depth} blocks: set an index from 0 to {depth - 1}, "
            "or a share of the depth such as 0.5"
        )
    return layer
