"""PDU's loss, constraint and dual variable, compared with the formulas token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from independent import assert_close, flat, gradient_of, make_method, mean_nll, token_logits
from ofmu.data.rows import Example
from ofmu.methods.pdu import PduConfig
from ofmu.testing import tiny_language_task

ROWS = tiny_language_task().forget_rows[:5]


def flattening(model: torch.nn.Module, rows: Sequence[Example]) -> torch.Tensor:
    margins = []
    for row in rows:
        for logits in token_logits(model, row):
            margins.append((torch.sort(logits).values[-1] - logits.sum() / len(logits)) ** 2)
    return torch.stack(margins).mean()


def test_forget_loss_flattens_the_logits_of_answer_tokens() -> None:
    method, model, _ = make_method("pdu")
    expected = flattening(model, ROWS)
    value, vector = method.engine.gradient(method.forget_loss(ROWS), ROWS)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert_close(vector[0], gradient_of(expected, model))


def test_the_constraint_is_a_share_above_the_targets_retain_loss() -> None:
    method, _, target = make_method("pdu", tolerance=0.25)
    assert method.epsilon == pytest.approx(1.25 * mean_nll(target, tiny_language_task().retain_rows).item(), rel=1e-9)
    assert make_method("pdu", epsilon=0.3)[0].epsilon == 0.3


def test_the_first_step_descends_both_losses_weighted_by_the_dual_variable() -> None:
    settings = {"update": "sgd", "lr": 1e-4, "retain_weight": 7.0, "forget_weight": 0.5, "steps": 1}
    method, model, target = make_method("pdu", **settings)
    twin, _, _ = make_method("pdu", **settings)
    rows = twin._forget_sampler.draw(), twin._retain_sampler.draw()
    expected = gradient_of(0.5 * flattening(target, rows[0]) + 7.0 * mean_nll(target, rows[1]), target)
    list(method.rounds())
    change = (flat(model) - flat(target)) / -1e-4
    assert (change - expected).norm() < 1e-7 * expected.norm()


def test_the_dual_variable_follows_the_violation_of_the_constraint_and_is_never_negative() -> None:
    method, _, _ = make_method("pdu", dual_step=5.0, retain_weight=4.0, epsilon=4.0, steps=6)
    alpha, alphas = 4.0, []
    for record in method.rounds():
        assert record.retain_loss is not None
        alpha = max(0.0, alpha + 5.0 * (record.retain_loss - 4.0))
        assert method.dual_variable == pytest.approx(alpha, rel=1e-12)
        alphas.append(alpha)
    assert len(set(alphas)) > 1


def test_a_violated_constraint_raises_a_dual_variable_of_zero() -> None:
    method, _, _ = make_method("pdu", retain_weight=1.0, epsilon=1000.0, steps=2)
    rounds = method.rounds()
    next(rounds)
    assert method.dual_variable == 0
    method.epsilon = 0.001
    next(rounds)
    assert method.dual_variable > 0


def test_the_dual_variable_is_part_of_the_state() -> None:
    method, _, _ = make_method("pdu", epsilon=0.5)
    next(method.rounds())
    other, _, _ = make_method("pdu", epsilon=0.5)
    other.restore(method.state(), method.vectors())
    assert other.dual_variable == method.dual_variable != 100.0


def test_a_tolerance_beside_an_epsilon_has_no_effect() -> None:
    assert "method.tolerance" in PduConfig(epsilon=0.3, tolerance=2.0).ineffective()[0]
    assert PduConfig(tolerance=2.0).ineffective() == []
