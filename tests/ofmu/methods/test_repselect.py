"""RepSelect, compared with a whole decomposition in NumPy and with a gradient of plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from independent import flat, gradient_of, make_method, mean_nll, nll
from ofmu.config.files import validate
from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import ConfigError, NonFiniteLossError
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.repselect import RepselectConfig, collapse_components
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from ofmu.run_config import UnlearnConfig
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


def mean_of_rows(model: Any, rows: Sequence[Example]) -> float:
    """Return the mean over rows of a row's loss per token."""
    return sum(nll(model, row).item() / row.answer_length for row in rows) / len(rows)


def test_the_steps_go_along_the_collapsed_gradient_until_the_loss_has_risen() -> None:
    method, model, target = make_method("repselect", steps=3, rise=0.5, batch_size=100)
    rows = tiny_language_task().forget_rows
    pieces = []
    start = 0
    whole = gradient_of(mean_nll(target, rows), target)
    for name, parameter in target.named_parameters():
        piece = whole[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
        inside = ".mlp." in name
        pieces.append((collapse_components(piece, piece, 0.125, soft=True) if inside else 0 * piece).flatten())
    direction = torch.cat(pieces)
    records = list(method.rounds())
    moved = flat(model) - flat(target)
    torch.testing.assert_close(moved / moved.norm(), direction / direction.norm(), rtol=1e-7, atol=1e-9)
    assert [record.outer_step for record in records] == [1, 2, 3]
    # The test interpolates by a power law between two lengths.
    assert records[-1].forget_loss - mean_of_rows(target, rows) == pytest.approx(0.5, rel=0.1)
    assert records[-1].forget_loss == pytest.approx(mean_of_rows(model, rows), rel=1e-9)
    assert records[0].forget_loss < records[1].forget_loss < records[2].forget_loss
    assert records[0].kept_share == pytest.approx((direction.norm() / records[0].gradient_norm).item(), rel=1e-9)
    assert records[1].moved_share == pytest.approx((moved.norm() / flat(target).norm()).item() * 2 / 3, rel=1e-9)


def test_the_way_lies_inside_the_mask_and_the_record_tells_its_length() -> None:
    method, model, target = make_method("repselect", steps=1, rise=0.5, saliency_fraction=0.3)
    (record,) = method.rounds()
    mask = method._context.engine.space._mask[0]
    assert not method._direction.vector[0][~mask].any()
    moved = flat(model) - flat(target)
    assert record.moved_share == pytest.approx((moved.norm() / flat(target).norm()).item(), rel=1e-9)


def test_matrices_that_no_weight_has_are_named_with_some_that_it_has() -> None:
    with pytest.raises(ConfigError, match=r"'experts' is in no name.*such as 'mlp'"):
        make_method("repselect", matrices="experts")


def test_adapters_are_refused() -> None:
    model = tiny_llama()
    add_adapters(model, AdapterConfig(kind="lora", target_modules=["up_proj"]), 0)
    context = Context(TorchEngine(model, CostTracker()), tiny_language_task(), 0)
    with pytest.raises(ConfigError, match=r"set model\.adapter\.kind to 'none'"):
        build_method(context, RepselectConfig())


def test_a_hard_collapse_of_everything_is_refused_before_anything_is_prepared() -> None:
    with pytest.raises(ConfigError, match="removes the whole gradient"):
        validate(UnlearnConfig, {"method": {"name": "repselect", "collapse": "hard", "components": 1.0}})


def test_a_hard_collapse_that_leaves_rounding_alone_is_refused() -> None:
    method, _, _ = make_method("repselect", collapse="hard", components=0.999)
    with pytest.raises(ConfigError, match="leaves nothing of the forget gradient"):
        list(method.rounds())


def test_a_loss_that_becomes_nan_ends_the_run() -> None:
    method, _, _ = make_method("repselect", steps=2, rise=0.5)
    rounds = method.rounds()
    next(rounds)
    method._direction.vector[0].mul_(float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"Step 2 of 2 failed because .* became nan: lower method\.rise"):
        next(rounds)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    method, _, _ = make_method("repselect")
    # The loss is finite, and its gradient is not: √ has an infinite slope at 0.
    method._context.task.loss.total = lambda module, rows, device: (0 * module.model.norm.weight.sum()).sqrt()
    with pytest.raises(NonFiniteLossError, match="The norm of the forget gradient became nan"):
        list(method.rounds())
