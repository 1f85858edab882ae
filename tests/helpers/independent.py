"""The values that tests of methods compare with: plain torch in float64, one row at a time, without methods' code."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from method_specs import short_spec
from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.testing import tiny_language_task, tiny_llama


def make_method(name: str, **settings: Any) -> tuple[Any, nn.Module, nn.Module]:
    """Return a method on a float64 model, the model, and the target: a copy of the model at θ_0."""
    model = tiny_llama().double()
    target = copy.deepcopy(model)
    engine = TorchEngine(model, CostTracker())
    config = short_spec(name, **settings).method
    return build_method(Context(engine, tiny_language_task(), seed=5), config), model, target


def perturb(model: nn.Module) -> None:
    """Change all parameters a little, so that the model and the target differ."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def token_logits(model: Any, row: Example) -> Tensor:
    """Return the logits that predict each answer token: shape (answer tokens, vocabulary)."""
    ids = torch.tensor([row.input_ids])
    return model(input_ids=ids).logits[0, row.answer_start - 1 : -1]


def nll(model: nn.Module, row: Example) -> Tensor:
    """Return the NLL of the row's answer, summed over tokens, in nats."""
    answer = torch.tensor(row.input_ids[row.answer_start :])
    return -token_logits(model, row).log_softmax(-1)[torch.arange(len(answer)), answer].sum()


def mean_nll(model: nn.Module, rows: Sequence[Example]) -> Tensor:
    """Return the NLL per answer token over all rows, in nats."""
    return torch.stack([nll(model, row) for row in rows]).sum() / sum(row.answer_length for row in rows)


def gradient_of(loss: Tensor, model: nn.Module) -> Tensor:
    """Return the gradient of the loss, flattened in the order of the parameters; 0 if there is no dependence."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([piece.flatten() for piece in pieces])


def flat(model: nn.Module) -> Tensor:
    """Return a copy of all parameters, flattened."""
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare two vectors with a tolerance relative to the norm of ``expected``."""
    assert expected.norm() > 0
    assert (actual - expected).norm() <= 1e-9 * expected.norm()
