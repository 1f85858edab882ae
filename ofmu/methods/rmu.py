"""RMU: hidden states of forget rows are steered to one random vector, those of retain rows held in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ofmu.config.base import NonNegativeInt, PositiveFloat
from ofmu.data.collate import collate
from ofmu.data.rows import Example
from ofmu.errors import ConfigError
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.frozen_target import FrozenTarget
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig, SingleLoopMethod

Read = Callable[[Callable[..., Any], Sequence[Example], torch.device], list[Tensor]]
"""From module, rows and device to each row's hidden states, shape (answer tokens, width)."""


class RmuConfig(SingleLoopConfig):
    """RMU's settings."""

    name: Literal["rmu"] = "rmu"
    layer: NonNegativeInt | Annotated[float, Field(gt=0, le=1)] = 0.5
    """Block whose output is steered: an index from 0, or, with a decimal point, a share of the model's depth."""
    coefficient: PositiveFloat = 2.0
    """Norm of the vector c that forget states are steered to; it should exceed the norm of the states themselves."""


class StateLoss:
    """Mean squared distance of hidden states from their goals: over the width, a row's answer tokens, then rows."""

    def __init__(self, read: Read, goal: Callable[[Example], Tensor]) -> None:
        self._read, self._goal = read, goal

    def size(self, row: Example) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the rows' summed loss."""
        states = self._read(module, rows, device)
        losses = [(h - self._goal(row).to(h)).square().mean() for h, row in zip(states, rows, strict=True)]
        return torch.stack(losses).sum()


def answer_states(layer: int, pad_id: int, options: Mapping[str, Any]) -> Read:
    """Return what reads the output of block ``layer``, at least in fp32, at the positions of the answer's tokens.

    ``options`` go to the model's forward call. The last block's output is read after the model's final norm.
    """

    def read(module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> list[Tensor]:
        batch = collate(rows, pad_id, device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = module(**inputs, use_cache=False, output_hidden_states=True, **options).hidden_states[layer + 1]
        states = states if states.dtype == torch.float64 else states.float()
        return [row_states[row.answer_start : len(row.input_ids)] for row_states, row in zip(states, rows, strict=True)]

    return read


@register("rmu")
class RMU(SingleLoopMethod[Example]):
    """L = γ MSE(h(forget), c) + α MSE(h(retain), h_0(retain)), h the output of one block, c = coefficient·u/‖u‖.

    u ~ U(0, 1)^d is drawn once from the seed, h_0 are the start model's states. Only answer tokens count, and every
    parameter up to the block is trained, where the authors train a few matrices; those behind it never move.
    """

    Config = RmuConfig
    title = "RMU"
    source = "Li et al. (WMDP), arXiv 2403.03218, section 4; answer mask of open-unlearning"
    tasks = frozenset({"language"})
    space: ClassVar = {name: spec for name, spec in SINGLE_LOOP_SPACE.items() if name != "retain_weight"} | {
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
    settings: RmuConfig

    def __init__(self, context: Context[Example], settings: RmuConfig) -> None:
        super().__init__(context, settings)
        model: Any = self.engine.model
        pad_id = context.task.loss.pad_id  # type: ignore[attr-defined]
        # the logits are not needed, and at a large vocabulary they are most of the memory
        takes = inspect.signature(type(model).forward).parameters
        options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._read = answer_states(block_index(settings.layer, model.config.num_hidden_layers), pad_id, options)
        drawn = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(context.seed))
        self.goal = settings.coefficient * drawn / drawn.norm()
        self._forget = StateLoss(self._read, lambda row: self.goal)
        self._start = FrozenTarget(self.engine, self.task.loss)

    def forget_loss(self, rows: Sequence[Example]) -> StateLoss:
        """Return the distance to the steering vector."""
        return self._forget

    def retain_loss(self, rows: Sequence[Example]) -> StateLoss:
        """Return the distance to the start model's states, which one forward pass computes."""
        states = self._start.outputs(self._read, rows)
        return StateLoss(self._read, lambda row: states[id(row)])


def block_index(layer: int | float, depth: int) -> int:
    """Return the index from 0 of a block given as such, or as a share of the depth.

    Raises:
        ConfigError: the model has no such block.
    """
    if isinstance(layer, float):
        return max(1, round(layer * depth)) - 1
    if layer >= depth:
        raise ConfigError(
            f"method.layer {layer} does not exist in a model of {depth} blocks: name one from 0 to {depth - 1}, "
            "or a share of the depth such as 0.5"
        )
    return layer
