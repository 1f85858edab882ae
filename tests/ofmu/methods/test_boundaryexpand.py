"""Boundary expand, compared with a classifier that has one more class."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vision_case import Case, labels_of, plain_logits


def widened(case: Case) -> nn.Module:
    """Return the model with a fourth output. The initial weights of this output are those of the method."""
    model = copy.deepcopy(case.model)
    old = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
    neuron = case.method._shadow_space.masters()[0]
    wide = nn.Linear(old.in_features, old.out_features + 1, dtype=torch.float64)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([old.weight, neuron[None, :-1]]))
        wide.bias.copy_(torch.cat([old.bias, neuron[-1:]]))
    parent = next(m for m in model.modules() if old in m.children())
    setattr(parent, next(name for name, child in parent.named_children() if child is old), wide)
    return model


def run_widened(
    model: nn.Module, case: Case, steps: int, lr: float, gamma: float, alpha: float, update: str = "adamw"
) -> None:
    forget, retain = case.task.forget_rows, case.task.retain_rows
    rules = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    optimizer = rules[update](model.parameters(), lr=lr, weight_decay=0.0)
    added = torch.full((len(forget),), 3)
    for _ in range(steps):
        loss = gamma * cross_entropy(plain_logits(model, forget), added)
        if alpha:
            # The loss of the retain rows is over the classes without the added one.
            loss = loss + alpha * cross_entropy(plain_logits(model, retain)[:, :3], labels_of(retain))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def assert_equals_widened(case: Case, model: nn.Module) -> None:
    *body, weight, bias = model.parameters()
    expected = torch.cat([*(p.detach().flatten() for p in body), weight[:3].flatten(), bias[:3]]).detach()
    assert torch.allclose(case.flat(), expected, rtol=1e-7, atol=1e-10)
    shadow = torch.cat([weight[3], bias[3:]]).detach()
    assert torch.allclose(case.method._shadow_space.masters()[0], shadow, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("update", ["adamw", "sgd"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_run_equals_one_of_the_widened_classifier_without_the_last_output(update: str, alpha: float) -> None:
    case = Case("boundaryexpand", steps=3, lr=0.01, forget_weight=2.0, retain_weight=alpha, update=update)
    model = widened(case)
    run_widened(model, case, 3, 0.01, 2.0, alpha, update)
    list(case.method.rounds())
    assert_equals_widened(case, model)


def test_the_weight_of_the_stop_acts_on_the_added_neuron_too() -> None:
    stop = {"min_forget_loss": 3.0, "stop_penalty": 0.7}
    case = Case("boundaryexpand", steps=1, lr=0.1, forget_weight=2.0, update="sgd", **stop)
    model = widened(case)
    (record,) = case.method.rounds()
    assert 0.1 < record.stop_weight < 0.6
    run_widened(model, case, 1, 0.1, 2.0 * record.stop_weight, 0.0, "sgd")
    assert_equals_widened(case, model)
