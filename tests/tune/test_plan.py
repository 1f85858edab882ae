from __future__ import annotations

from typing import Any

import pytest

from ofmu.plan.plan import make_plan
from tune.config import SearchConfig
from tune.plan import search_cost


def config_of(mapping: dict[str, Any], **search: Any) -> SearchConfig:
    return SearchConfig.model_validate({**mapping, "search": search})


@pytest.fixture
def graddiff(tiny_mapping: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_mapping, "method": {"name": "graddiff", "steps": 7, "batch_size": 2}}


@pytest.mark.slow
def test_a_fixed_number_of_steps_is_multiplied(graddiff):
    space = {"method": {"lr": {"low": 1e-5, "high": 1e-3}}}
    config = config_of(graddiff, space=space, num_trials=5, baselines=["target"])
    work = make_plan(config.unlearn).work
    least, most = search_cost(config, work)
    # four sampled trials of seven steps, each with two gradients; the target takes none
    assert least.gradient_evaluations == most.gradient_evaluations == pytest.approx(4 * 7 * 2)
    assert least.forward_tokens == pytest.approx(5 * work.evaluation_tokens)


@pytest.mark.slow
def test_searched_steps_count_with_their_mean(graddiff):
    space = {"method": {"steps": {"low": 10, "high": 30}}}
    config = config_of(graddiff, space=space, num_trials=11, baselines=["target"])
    least, _ = search_cost(config, make_plan(config.unlearn).work)
    assert least.gradient_evaluations == pytest.approx(10 * 20 * 2, rel=0.15)


@pytest.mark.slow
def test_the_published_setting_counts_where_it_runs(tiny_mapping):
    mapping = {**tiny_mapping, "method": {"name": "ofmu"}}
    space = {"method": {"inner_lr": {"low": 1e-3, "high": 1e-2}}}
    costs = []
    for baselines in (["target"], ["target", "published"]):
        config = config_of(mapping, space=space, num_trials=2, baselines=baselines)
        costs.append(search_cost(config, make_plan(config.unlearn).work)[0].gradient_evaluations)
    # K = 10 outer steps of 18, T = 5 inner steps of 6 before each
    assert costs[1] >= 10 * (18 + 5 * 6)
    assert costs[1] != costs[0]


@pytest.mark.slow
def test_scored_rounds_and_a_second_evaluation_count_under_checkpoint_selection(graddiff):
    space = {"method": {"lr": {"low": 1e-5, "high": 1e-3}}}
    search = {"space": space, "num_trials": 5, "baselines": ["target"]}
    plain = config_of(graddiff, **search)
    work = make_plan(plain.unlearn).work
    without = search_cost(plain, work)
    for rows in (2, 10**6):
        selection = {"enabled": True, "rounds": [0.25, 0.5], "rows": rows}
        least, most = search_cost(config_of(graddiff, **search, checkpoint_selection=selection), work)
        partial = work.partial_tokens(rows)
        # four sampled trials: the last round at least, two earlier rounds and one whole evaluation at most
        assert least.forward_tokens - without[0].forward_tokens == pytest.approx(4 * partial)
        assert most.forward_tokens - without[1].forward_tokens == pytest.approx(
            4 * (3 * partial + work.evaluation_tokens)
        )
        assert least.gradient_evaluations == without[0].gradient_evaluations
    assert 0 < work.partial_tokens(2) < work.partial_tokens(10**6) <= work.evaluation_tokens
