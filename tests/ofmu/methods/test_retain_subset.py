"""A share of the retain rows: which rows a method sees, and that nothing else changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from method_specs import short_spec
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.registry import method_class
from ofmu.methods.retain_subset import drawn_count, drawn_retain_rows
from ofmu.testing import run, tiny_language_task, tiny_llama


def seen_rows(name: str, **settings: Any) -> tuple[set[int], Any]:
    """Return the positions of the retain rows of which a run computes a loss, and the task."""
    task = tiny_language_task()
    positions = {id(row): index for index, row in enumerate(task.retain_rows)}
    seen: set[int] = set()
    loss, total, means = task.loss, task.loss.total, task.loss.row_means

    def watched(real: Any) -> Any:
        def call(module: Any, rows: Any, device: Any) -> Any:
            seen.update(positions[id(row)] for row in rows if id(row) in positions)
            return real(module, rows, device)

        return call

    loss.total, loss.row_means = watched(total), watched(means)  # type: ignore[method-assign]
    engine = TorchEngine(tiny_llama(), CostTracker())
    list(build_method(Context(engine, task, seed=5), short_spec(name, **settings).method).rounds())
    return seen, task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("graddiff", {"steps": 12, "lr": 1e-5}),
        ("influence", {}),
        ("ofmu", {"outer_lr": None, "outer_steps": 12, "decorrelation": "none", "penalty_weight": 0.0}),
    ],
)
def test_a_method_sees_the_drawn_rows_and_no_other(name: str, settings: dict[str, Any]) -> None:
    config = method_class(name).Config(retain_share=0.4, retain_draw=3)
    seen, task = seen_rows(name, retain_share=0.4, retain_draw=3, **settings)
    drawn = drawn_retain_rows(len(task.retain_rows), task.content_hash, config)
    assert seen == set(drawn.indices)
    assert len(seen) == round(0.4 * len(task.retain_rows)) < len(task.retain_rows)
    assert seen_rows(name, **settings)[0] == set(range(len(task.retain_rows)))


def test_a_draw_is_the_same_for_every_method_and_seed_and_draws_differ() -> None:
    def drawn(name: str, draw: int, **settings: Any) -> Any:
        config = method_class(name).Config(retain_share=0.5, retain_draw=draw, **settings)
        return drawn_retain_rows(40, "content", config)

    assert drawn("npo", 1) == drawn("ofmu", 1, seed=9)
    found = [drawn("npo", draw) for draw in range(6)]
    assert len({each.hash for each in found}) == len({each.indices for each in found}) == 6
    assert all(len(set(each.indices)) == 20 and set(each.indices) <= set(range(40)) for each in found)
    # Every row is drawn about as often as any other: 3 of 6 times, on average.
    counts = [sum(index in each.indices for each in found) for index in range(40)]
    assert sum(counts) == 120
    assert max(counts) > min(counts)
    other = drawn_retain_rows(40, "other content", method_class("npo").Config(retain_share=0.5, retain_draw=1))
    assert other.indices == drawn("npo", 1).indices
    assert other.hash != drawn("npo", 1).hash


@pytest.mark.parametrize(
    ("total", "share", "count"), [(10, 0.5, 5), (3, 0.5, 2), (5, 0.01, 1), (7, 0.99, 7), (1, 0.5, 1)]
)
def test_a_share_is_rounded_to_rows_and_has_at_least_one(total: int, share: float, count: int) -> None:
    assert drawn_count(total, share) == count
    assert math.isclose(count, share * total, abs_tol=0.99)


@pytest.mark.slow
def test_all_rows_are_the_run_without_the_setting_and_a_draw_of_all_rows_is_named() -> None:
    whole, drawn = (run(short_spec("npo", **settings)) for settings in ({}, {"retain_share": 1.0, "retain_draw": 4}))
    assert whole.records == drawn.records
    assert all(torch.equal(whole.parameters[name], drawn.parameters[name]) for name in whole.parameters)
    (note,) = method_class("npo").Config(retain_draw=4).ineffective()
    assert note == "method.retain_draw has no effect: method.retain_share is 1"
    assert not method_class("npo").Config(retain_draw=4, retain_share=0.5).ineffective()
