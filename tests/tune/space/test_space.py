from __future__ import annotations

from typing import Any

import pytest

from ofmu.config.files import validate
from ofmu.errors import ConfigError
from ofmu.run_config import UnlearnConfig, override
from tune.config import SearchConfig, fix_settings
from tune.space.parameter import default_space
from tune.space.space import draw_settings, in_order, is_whole, run_config

RATE = {"low": 0.01, "high": 0.1, "log": True}


def config(space: dict[str, Any] | None = None, **sections: Any) -> SearchConfig:
    search = {} if space is None else {"space": space}
    return validate(SearchConfig, {"search": search, **sections})


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"method.iner_lr": RATE}, "did you mean 'method.inner_lr'"),
        ({"data.authors": {"low": 2, "high": 5}}, "all trials share one preparation"),
        ({"method.forget_level": RATE}, "'method.forget_level' is called 'method.forget_margin' since ofmu 0.2.0"),
        (
            {"method.inner_lr": {**RATE, "when": {"method.forget_level": 1}}},
            "'method.forget_level' is called 'method.forget_margin' since ofmu 0.2.0",
        ),
        ({"method.inner_lr": {"low": 0.1, "high": 0.01}}, "low 0.1 must be below high 0.01"),
        ({"method.inner_lr": {"low": 0.0, "high": 0.1, "log": True}}, "log scale needs low above 0"),
        ({"method.inner_lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, "leave one out"),
        ({"method.inner_lr": {"low": 0.1}}, "must be a range"),
        ({"method.inner_lr": {"low": 0.1, "high": 1, "choices": [1]}}, "must be a range"),
        ({"method.inner_lr": {"low": 0.1, "hihg": 1}}, "did you mean 'search.space.method.inner_lr.high'"),
        ({"method.inner_steps": {"low": 1.5, "high": 3}}, "whole number"),
        ({"method.inner_lr": {"low": -1, "high": 0.1}}, "method.inner_lr"),
        ({"method.inner_update": ["sgd", "sdg"]}, "method.inner_update"),
        ({"method.inner_lr": 0.1}, "nothing to search"),
        ({"method.inner_lr": {**RATE, "when": {"method.inner_update": "sgd"}}}, "not searched"),
        (
            {"method.inner_lr": {**RATE, "when": {"method.inner_update": "sgd"}}, "method.inner_update": ["adamw"]},
            "never is",
        ),
        (
            {
                "method.inner_lr": {**RATE, "when": {"method.outer_lr": 0.05}},
                "method.outer_lr": {**RATE, "when": {"method.inner_lr": 0.05}},
            },
            "cycle",
        ),
        (
            {"method.derivative": ["central", "reverse_over_forward"], "engine.gradient_checkpointing": True},
            "engine.gradient_checkpointing",
        ),
        ({"method.inner_lr": {**RATE, "otherwise": 0.5}}, "add 'when'"),
        (
            {
                "method.inner_update": ["sgd", "adamw"],
                "method.inner_lr": {**RATE, "when": {"method.inner_update": "sgd"}, "otherwise": -1.0},
            },
            "method.inner_lr",
        ),
        ({"method.module": ["os", "sys"], "method.inner_lr": RATE}, "all trials of a search run one method"),
        ({"method.name": ["ofmu", "npo"], "method.inner_lr": RATE}, "or use ofmu compare"),
        ({"method.similarity_threshold": {"low": -1e300, "high": 1e300}}, "is too wide"),
        ({"method.inner_lr": {"low": 1e-300, "high": 1e300, "log": True}}, "is too wide"),
        ({"method.inner_lr": {"low": 0.1, "high": 1, "step": 1e-300}}, "use a larger step"),
        ({"method.inner_steps": {"low": 1, "high": 1e300}}, "is too wide"),
        ({"method.inner_steps": {"low": 1, "high": 1e13}}, "method.inner_steps"),
    ],
)
def test_a_space_that_makes_no_run_is_refused_in_one_sentence(space, words):
    with pytest.raises(ConfigError) as caught:
        config(space)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"objectives": {"ks_statistc": "min", "model_utility": "max"}}, "did you mean 'ks_statistic'"),
        ({"objectives": {"ks_statistic": "min"}}, "two or three"),
        ({"objectives": {"ks_statistic": "down", "model_utility": "max"}}, "ks_statistic"),
        ({"sampler": "cmaes"}, "sampler"),
        ({"num_trials": 0}, "num_trials"),
        ({"num_trails": 3}, "did you mean 'search.num_trials'"),
        ({"rungs": {"enabled": True}}, "'search.rungs' is called 'search.early_stopping' since ofmu 0.2.0"),
        ({"max_concurrent": 2}, "'search.max_concurrent' is called 'search.max_concurrent_trials' since ofmu 0.2.0"),
    ],
)
def test_wrong_search_settings_are_refused(search, words):
    with pytest.raises(ConfigError) as caught:
        validate(SearchConfig, {"search": search})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"early_stopping": {"enabled": True}}}, "set search.early_stopping.enabled to false"),
        ({"data": {"source": "cifar10"}}, "these data are images: set search.checkpoint_selection.enabled to false"),
        (
            {"search": {"objectives": {"relearning_probability": "min", "model_utility": "max"}}},
            "search.checkpoint_selection compares objectives during a run, and relearning_probability is measured at",
        ),
        (
            {"search": {"objectives": {"forget_distinct_1": "max", "model_utility": "max"}}},
            "search.checkpoint_selection compares objectives during a run, and forget_distinct_1 is measured at",
        ),
        ({"search": {"constraints": {"kl_retain": {"max": 0.1}}}}, "kl_retain, which search.constraints bounds"),
        ({"search": {"checkpoint_selection": {"enabled": True, "rounds": []}}}, "search.checkpoint_selection.rounds"),
        ({"search": {"checkpoint_selection": {"enabled": True, "rounds": [1]}}}, "search.checkpoint_selection.rounds"),
    ],
)
def test_what_checkpoint_selection_cannot_do_is_refused(changes, words):
    search = {"checkpoint_selection": {"enabled": True}} | changes.get("search", {})
    with pytest.raises(ConfigError) as caught:
        validate(SearchConfig, {**changes, "search": search})
    assert words in str(caught.value)


def test_objectives_follow_the_reference():
    assert config().objectives == {"ks_statistic": "min", "model_utility": "max"}
    without = config(reference={"source": "none"})
    assert without.objectives == {"extraction_strength": "min", "model_utility": "max"}
    with pytest.raises(ConfigError, match=r"reference.source is 'none'"):
        validate(
            SearchConfig,
            {"reference": {"source": "none"}, "search": {"objectives": {"ks_statistic": "min", "seconds": "min"}}},
        )


def test_a_setting_comes_after_the_settings_of_its_conditions():
    space = config(
        {
            "method.inner_lr": {**RATE, "when": {"method.inner_update": ["sgd", "adamw"]}},
            "method.inner_update": {"choices": ["sgd", "normalized", "adamw"], "when": {"method.inner_steps": 2}},
            "method.inner_steps": {"low": 1, "high": 3},
        }
    ).search.space
    assert in_order(space) == ["method.inner_steps", "method.inner_update", "method.inner_lr"]


CONDITIONAL = {
    "method.decorrelation": ["none", "cosine"],
    "method.penalty_weight": {**RATE, "when": {"method.decorrelation": "cosine"}, "otherwise": 0.0},
    "method.similarity_weight": {**RATE, "when": {"method.decorrelation": "cosine"}},
}


def test_an_inactive_setting_has_its_otherwise() -> None:
    space = config(CONDITIONAL).search.space
    drawn = [
        draw_settings(space, lambda key, parameter, way=way: way if key == "method.decorrelation" else 0.05)
        for way in ("none", "cosine")
    ]
    assert drawn == [
        {"method.decorrelation": "none", "method.penalty_weight": 0.0},
        {"method.decorrelation": "cosine", "method.penalty_weight": 0.05, "method.similarity_weight": 0.05},
    ]


@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("none", {"method.decorrelation": "none", "method.penalty_weight": 0.0}),
        ("cosine", {"method.decorrelation": "cosine"}),
    ],
)
def test_a_condition_that_the_command_line_decides_leaves_its_otherwise(way: str, left: dict[str, Any]) -> None:
    mapping = {"search": {"space": {**CONDITIONAL, "method.inner_lr": RATE}}}
    space = validate(SearchConfig, fix_settings(mapping, {"method.decorrelation": way})).search.space
    assert {key: parameter.value for key, parameter in space.items() if parameter.kind == "fixed"} == left
    assert ("method.similarity_weight" in space) == (way == "cosine")


def test_the_default_space_costs_nothing_for_terms_that_a_trial_leaves_out() -> None:
    space = default_space()
    plain = draw_settings(space, lambda key, parameter: "none" if parameter.choices else parameter.low)
    run = run_config(UnlearnConfig(), plain).method
    assert not run.decorrelates
    assert run.penalty_weight == 0
    for variant, left_out in (("first_order", 5), ("projection", 2)):
        varied = default_space(variant=variant)
        assert len(varied) == len(space) - left_out
        assert not any(parameter.when for parameter in varied.values())


def test_a_range_is_whole_if_the_setting_is():
    space = default_space()
    whole = {key for key, parameter in space.items() if is_whole(UnlearnConfig(), key, parameter)}
    assert whole == {"method.inner_steps", "method.outer_steps", "method.regularization_interval"}
    assert len(space) == 10


def test_dotted_overrides_reach_into_the_space():
    base = {"search": {"space": {"method.inner_lr": RATE}}}
    mapping = override(base, ["search.space.method.inner_lr.low=0.02", "search.space.method.inner_steps=4"])
    space = validate(SearchConfig, mapping).search.space
    assert (space["method.inner_lr"].low, space["method.inner_lr"].high) == (0.02, 0.1)
    assert space["method.inner_steps"].value == 4


def test_a_stored_config_reads_back_the_same():
    original = config({"method.inner_lr": RATE, "method.max_grad_norm": None, "method.inner_update": ["sgd", "adamw"]})
    assert validate(SearchConfig, original.model_dump(mode="json")) == original


def test_a_run_takes_the_shared_settings_and_the_overrides():
    shared = config(seed=7, method={"batch_size": 5})
    run = run_config(shared.unlearn, {"method.inner_lr": 0.03, "engine.zero_stage": 1})
    assert (run.seed, run.method.batch_size, run.method.inner_lr, run.engine.zero_stage) == (7, 5, 0.03, 1)
    with pytest.raises(ConfigError, match="penalty_max"):
        run_config(shared.unlearn, {"method.penalty_weight": 0.5, "method.penalty_max": 0.1})
