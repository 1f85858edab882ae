"""The blocks of a decoder, and reading and replacing what a block returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ofmu.errors import ModelError

Edit = Callable[[Tensor], Tensor]
"""Takes hidden states of shape (rows, tokens, width), and returns what stands in their place."""


def decoder_blocks(model: Any) -> list[nn.Module]:
    """Return the blocks of a causal language model in order, whatever the architecture calls them.

    Raises:
        ModelError: the model has no list of blocks.
    """
    number = model.config.get_text_config().num_hidden_layers
    # Lists inside a block, such as the experts of a mixture, come after the list of the blocks.
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ModelError(f"{type(model).__name__} has no list of {number} blocks, so its hidden states cannot be patched")


@contextmanager
def editing(block: nn.Module, edit: Edit) -> Iterator[None]:
    """Let the hidden states that ``block`` returns be ``edit(hidden states)`` inside the block of code."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        edited = edit(_hidden(block, output))
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recording(blocks: list[nn.Module], read: Edit) -> Iterator[list[Tensor]]:
    """Collect ``read(hidden states)`` of what each block returns, in the order of the forward pass."""
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        found.append(read(hidden))
        return hidden

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(editing(block, keep))
        yield found


def _hidden(block: nn.Module, output: Any) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise ModelError(f"{type(block).__name__} returns no hidden states of shape (rows, tokens, width)")
    return hidden
