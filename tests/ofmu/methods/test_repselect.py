"""RepSelect, compared with a whole decomposition in NumPy and with a gradient of plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from independent import flat, gradient_of, make_method, mean_nll
from ofmu.errors import ConfigError, NonFiniteLossError
from ofmu.methods.repselect import collapse_components
from ofmu.testing import tiny_language_task, tiny_llama


def random_matrix(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_a_softly_collapsed_component_of_the_matrix_itself_has_the_value_of_the_smallest_squared_over_its_own() -> None:
    matrix = random_matrix(12, 20)
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    values[:3] = values[2] ** 2 / values[:3]
    found = collapse_components(matrix, matrix, 0.25, soft=True)
    np.testing.assert_allclose(found.numpy(), left @ np.diag(values) @ right, atol=1e-12)


def test_a_hard_collapse_removes_the_components_on_both_sides() -> None:
    matrix, other = random_matrix(9, 8), random_matrix(9, 8).flip(0)
    left, _, right = np.linalg.svd(other.numpy(), full_matrices=False)
    found = collapse_components(matrix, other, 0.5, soft=False).numpy()
    np.testing.assert_allclose(left[:, :4].T @ found, 0, atol=1e-12)
    np.testing.assert_allclose(found @ right[:4].T, 0, atol=1e-12)
    kept_left, kept_right = np.eye(9) - left[:, :4] @ left[:, :4].T, np.eye(8) - right[:4].T @ right[:4]
    np.testing.assert_allclose(found, kept_left @ matrix.numpy() @ kept_right, atol=1e-12)


def test_matrices_of_a_batch_such_as_experts_collapse_one_by_one() -> None:
    batch = random_matrix(3, 6, 10)
    found = collapse_components(batch, batch, 0.4, soft=True)
    alone = [collapse_components(matrix, matrix, 0.4, soft=True) for matrix in batch]
    torch.testing.assert_close(found, torch.stack(alone))


def test_what_the_rows_do_not_span_does_not_count_as_the_smallest_component() -> None:
    matrix = random_matrix(10, 2) @ random_matrix(2, 10)
    left, values, right = np.linalg.svd(matrix.numpy())
    expected = left[:, :2] @ np.diag([values[1] ** 2 / values[0], values[1]]) @ right[:2]
    found = collapse_components(matrix, matrix, 0.5, soft=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.slow
def test_a_large_matrix_has_the_same_top_components_in_every_run() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(1100, 8, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(1200, 8, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([2.0**-k for k in range(8)], dtype=torch.float64)
    matrix = (left * values) @ right.mT
    state = torch.random.get_rng_state()
    first, second = (collapse_components(matrix, matrix, 6 / 1100, soft=False) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(first, (left[:, 6:] * values[6:]) @ right[:, 6:].mT, atol=1e-6, rtol=0)


def test_a_step_goes_along_the_collapsed_gradient_by_a_share_of_the_norm_of_the_weights() -> None:
    method, model, target = make_method("repselect", steps=3, step_size=0.01, batch_size=100)
    rows = tiny_language_task().forget_rows
    loss = mean_nll(target, rows)
    pieces = []
    start = 0
    whole = gradient_of(loss, target)
    for name, parameter in target.named_parameters():
        piece = whole[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
        inside = ".mlp." in name
        pieces.append((collapse_components(piece, piece, 0.125, soft=True) if inside else 0 * piece).flatten())
    direction = torch.cat(pieces)
    records = list(method.rounds())
    expected = flat(target) + 3 * 0.01 * flat(target).norm() * direction / direction.norm()
    torch.testing.assert_close(flat(model), expected, rtol=1e-9, atol=1e-11)
    assert [record.outer_step for record in records] == [1, 2, 3]
    assert records[0].forget_loss == pytest.approx(loss.item(), rel=1e-9)
    assert records[0].kept_share == pytest.approx((direction.norm() / records[0].gradient_norm).item(), rel=1e-9)
    assert mean_nll(model, rows).item() > loss.item()


def test_matrices_that_no_weight_has_are_named_with_one_that_it_has() -> None:
    with pytest.raises(ConfigError, match=r"'experts' is in no name.*such as 'model\.embed_tokens\.weight'"):
        make_method("repselect", matrices="experts")
    assert any("mlp" in name for name, _ in tiny_llama().named_parameters())


def test_a_hard_collapse_of_everything_is_refused() -> None:
    method, _, _ = make_method("repselect", collapse="hard", components=1.0)
    with pytest.raises(ConfigError, match="leaves nothing of the forget gradient"):
        list(method.rounds())


def test_a_gradient_that_is_not_finite_is_named() -> None:
    method, _, _ = make_method("repselect")
    # The loss is finite, and its gradient is not: √ has an infinite slope at 0.
    method._context.task.loss.total = lambda module, rows, device: (0 * module.model.norm.weight.sum()).sqrt()
    with pytest.raises(NonFiniteLossError, match="The norm of the forget gradient became nan"):
        list(method.rounds())
