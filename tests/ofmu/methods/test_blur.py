"""BLUR's direction, compared with the projection of gradients of an independent NPO loss."""

from __future__ import annotations

import pytest
import torch

from independent import assert_close, gradient_of, make_method, mean_nll, nll, perturb


@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 1.0), (0.3, 2.5)])
def test_the_direction_drops_the_retain_gradients_part_along_the_forget_gradient(gamma: float, alpha: float) -> None:
    method, model, target = make_method("blur", beta=0.2, forget_weight=gamma, retain_weight=alpha)
    perturb(model)
    twin, _, _ = make_method("blur")
    forget_rows, retain_rows = twin._forget_sampler.draw(), twin._retain_sampler.draw()
    per_row = [
        -(2 / 0.2) * torch.log(torch.sigmoid(0.2 * (nll(model, row) - nll(target, row).detach())))
        for row in forget_rows
    ]
    g_f = gradient_of(torch.stack(per_row).mean(), model)
    g_r = gradient_of(mean_nll(model, retain_rows), model)
    unit = g_f / g_f.norm()
    expected = gamma * g_f + alpha * (g_r - (unit @ g_r) * unit)
    direction = method.direction()
    assert_close(direction.vector[0], expected)
    assert direction.forget_loss == pytest.approx(torch.stack(per_row).mean().item(), rel=1e-9)
    assert direction.retain_loss == pytest.approx(mean_nll(model, retain_rows).item(), rel=1e-9)
    # The gradients have a common part, so a projection with a wrong sign would fail above.
    assert abs(float(unit @ g_r)) > 0.05 * float(g_r.norm())


def test_to_first_order_the_retain_part_does_not_change_the_forget_loss() -> None:
    method, _, _ = make_method("blur", forget_weight=0.0)
    vector = method.direction().vector
    method._forget_sampler.position = 0
    forget_rows = method._forget_sampler.draw()
    _, g_f = method.engine.gradient(method.forget_loss(forget_rows), forget_rows)
    size = float(g_f[0].norm() * vector[0].norm())
    assert abs(float(g_f[0] @ vector[0])) < 1e-12 * size
