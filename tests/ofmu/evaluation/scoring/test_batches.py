"""Batches against brute force and against sums that are computed anew."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from ofmu.evaluation.scoring.batches import MORE_ROWS, batches_by_label, global_batches, partition, row_batches


def brute_force(widths: list[int], overhead: int, rows: int, tokens: int, loads: list[int], load: int) -> int:
    """Return the least cost over all ways to cut the rows."""
    costs = []
    for count in range(len(widths)):
        for inner in combinations(range(1, len(widths)), count):
            edges = [0, *inner, len(widths)]
            parts = [(widths[a:b], loads[a:b]) for a, b in pairwise(edges)]
            if all(
                len(part) == 1 or (len(part) <= rows and len(part) * max(part) <= tokens and sum(loaded) <= load)
                for part, loaded in parts
            ):
                costs.append(sum(len(part) * max(part) + overhead for part, _ in parts))
    return min(costs)


@pytest.mark.parametrize("seed", range(30))
def test_no_other_partition_costs_less(seed: int) -> None:
    chance = random.Random(seed)
    widths = sorted(chance.choices(range(1, 30), k=chance.randint(1, 8)))
    loads = chance.choices(range(5), k=len(widths))
    overhead, rows, tokens, load = (chance.randint(low, high) for low, high in ((0, 30), (1, 6), (20, 90), (2, 12)))
    for bounded in (True, False):
        given = (loads, load) if bounded else ()
        cuts = partition(widths, overhead, lambda width: min(rows, tokens // width), *given)
        assert [cut[0] for cut in cuts] == [0, *(cut[1] for cut in cuts[:-1])]
        assert cuts[-1][1] == len(widths)
        cost = sum((end - start) * widths[end - 1] + overhead for start, end in cuts)
        assert cost == brute_force(widths, overhead, rows, tokens, loads, load if bounded else 99)


def test_equal_rows_fill_batches_and_rows_must_be_ordered() -> None:
    assert partition([3] * 7, 5, lambda _: 3) == [(0, 3), (3, 6), (6, 7)]
    assert partition([], 5, lambda _: 3) == []
    with pytest.raises(ValueError, match="ordered"):
        partition([2, 1], 5, lambda _: 3)


@pytest.mark.parametrize("seed", range(10))
def test_global_batches_hold_every_index_once_under_the_tokens_of_the_longest_rows(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(1, 60) for _ in range(chance.randint(1, 150))]
    size = chance.randint(1, 32)
    batches = global_batches(lengths, size)
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    most = min(size, len(lengths)) * max(lengths)
    assert all(len(batch) * max(lengths[index] for index in batch) <= most for batch in batches)
    assert all(len(batch) <= MORE_ROWS * size for batch in batches)


def test_batches_of_tokens_read_less_padding_in_no_more_passes_than_batches_of_rows() -> None:
    chance = random.Random(0)
    lengths = [round(chance.lognormvariate(3, 0.7)) + 1 for _ in range(500)]
    ours, before = (make(lengths, 16) for make in (global_batches, row_batches))

    def cost(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)

    assert len(ours) <= len(before)
    assert cost(ours) - sum(lengths) < 0.7 * (cost(before) - sum(lengths))
    assert global_batches([], 4) == []


def test_row_batches_hold_every_index_once_in_order_of_length() -> None:
    lengths = [5, 1, 5, 3, 9]
    batches = row_batches(lengths, 2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [index for batch in batches for index in batch] == [1, 3, 0, 2, 4]


def test_batches_of_a_set_do_not_depend_on_other_sets() -> None:
    chance = random.Random(1)
    lengths = [chance.randint(1, 40) for _ in range(120)]
    labels = [chance.choice("ab") for _ in lengths]

    def make(indices: list[int]) -> list[list[int]]:
        return [[indices[place] for place in batch] for batch in global_batches([lengths[i] for i in indices], 8)]

    alone = make([index for index, label in enumerate(labels) if label == "a"])
    assert [batch for batch in batches_by_label(labels, make) if labels[batch[0]] == "a"] == alone
