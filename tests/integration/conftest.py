from __future__ import annotations

from typing import Any

import pytest

SMALLEST: dict[str, Any] = {
    "model": {
        "scratch": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    },
    "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}, "max_length": 64},
    "training": {"epochs": 1},
    "method": {"batch_size": 2},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 4},
    "search": {"space": {"method.outer_steps": {"low": 1, "high": 2}}},
}


@pytest.fixture(scope="session")
def smallest_search() -> dict[str, Any]:
    """The config of a search of real runs that are as small as possible. Tests merge it with their own settings."""
    return SMALLEST


@pytest.fixture(scope="session")
def slow_search(smallest_search: dict[str, Any]) -> dict[str, Any]:
    """A search of six trials of twelve slow, tiny rounds.

    The sampler is random, so that no setting depends on the order in which trials end.
    """
    method = {"name": "slow_ofmu", "module": "slow_ofmu", "batch_size": 2, "inner_steps": 1, "outer_steps": 12}
    search = {"num_trials": 6, "sampler": "random", "space": {"method.inner_lr": {"low": 0.01, "high": 0.1}}}
    return {**smallest_search, "method": {**method, "pause": 0.2, "log": "unset"}, "search": search}
