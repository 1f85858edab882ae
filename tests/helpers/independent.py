"""What the tests of methods compare with: plain torch, one row at a time, in float64, with no code of the methods."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from method_run import small_settings, tiny_task
from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from trajectory import tiny_llama


def started(name: str, **settings: Any) -> tuple[Any, nn.Module, nn.Module]:
    """Return a method on a float64 model, that model, and a copy of it at θ_0."""
    model = tiny_llama().double()
    start = copy.deepcopy(model)
    engine = TorchEngine(model, CostTracker())
    return build_method(Context(engine, tiny_task(), seed=5), small_settings(name, **settings)), model, start


def nudge(model: nn.Module) -> None:
    """Move all parameters a little, so that model and start model differ."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def token_logits(model: Any, row: Example) -> Tensor:
    """Return the logits that predict each answer token: shape (answer tokens, vocabulary)."""
    ids = torch.tensor([row.input_ids])
    return model(input_ids=ids).logits[0, row.answer_start - 1 : -1]


def nll(model: nn.Module, row: Example) -> Tensor:
    """Return the summed NLL of the row's answer."""
    answer = torch.tensor(row.input_ids[row.answer_start :])
    return -token_logits(model, row).log_softmax(-1)[torch.arange(len(answer)), answer].sum()


def mean_nll(model: nn.Module, rows: Sequence[Example]) -> Tensor:
    """Return the token-mean NLL over all rows together."""
    return torch.stack([nll(model, row) for row in rows]).sum() / sum(row.answer_length for row in rows)


def gradient_of(loss: Tensor, model: nn.Module) -> Tensor:
    """Return the loss's gradient, flattened in the order of the parameters; zero where it does not reach."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([piece.flatten() for piece in pieces])


def flat(model: nn.Module) -> Tensor:
    """Return a copy of all parameters, flattened."""
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Relative to the expected vector's norm, far below any factor or sign that could be wrong."""
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-9 * expected.norm()
