"""Every vector space, compared with whole vectors in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ofmu.testing import run_script_on_ranks
from ofmu.vectors.whole import ReplicatedSpace

PROBE = Path(__file__).resolve().parents[2] / "helpers" / "vector_probe.py"


CASES = {
    2: [(0, "none", 4), (3, "cpu", 2), (1, "cpu", 2)],
    3: [(1, "none", 4), (2, "none", 1), (3, "none", 1)],
}
"""By number of ranks: ZeRO stage, offload, micro-batch size."""


@pytest.mark.ranks
@pytest.mark.timeout(250)
@pytest.mark.parametrize("ranks", CASES)
def test_a_sharded_space_equals_the_whole_one(ranks: int) -> None:
    """Three ranks have unequal partitions. With seven rows, one rank has fewer micro-batches than another."""
    run_script_on_ranks(PROBE, ranks, json.dumps(CASES[ranks]))


def test_parameters_become_views_and_keep_their_values() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = [p.detach().clone() for p in module.parameters()]
    space = ReplicatedSpace(module)
    for parameter, value in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    space.masters()[0].zero_()
    assert all(not parameter.any() for parameter in module.parameters())


def test_dots_of_long_vectors_keep_their_digits() -> None:
    """The sum of a million fp32 terms is within 1e-7 of the float64 sum."""
    torch.manual_seed(1)
    module = nn.Linear(1000, 1000, bias=False)
    space = ReplicatedSpace(module)
    left, right = [torch.rand(10**6) + 1], [torch.rand(10**6) + 1]
    exact = float(left[0].double() @ right[0].double())
    assert space.dots((left, right))[0] == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_become_sums_of_each_other_in_place(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ofmu.vectors.base._PIECE", 256)
    vectors = [[torch.randn(1000, generator=torch.Generator().manual_seed(seed)).to(dtype)] for seed in range(3)]
    before = torch.stack([vector[0].double() for vector in vectors])
    rows = ((0.5, -2.0), (1.0, 0.25, 3.0), (1e-3, 1.0, -1.0))
    ReplicatedSpace(nn.Linear(1000, 1, bias=False)).transform(vectors, rows)
    matrix = torch.tensor([[*row, 0.0][:3] for row in rows], dtype=torch.float64)
    for (found,), wanted in zip(vectors, matrix @ before, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_a_frozen_parameter_is_not_part_of_the_space() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    assert {segment.parameter for segment in ReplicatedSpace(module).segments()} == {"1.weight", "1.bias"}


def test_mixed_dtypes_raise() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="one dtype"):
        ReplicatedSpace(module)
