"""Constraints: what a config may say, what the bounds become, and what the violations are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ofmu.config.files import validate
from ofmu.errors import ConfigError
from tune.config import SearchConfig
from tune.space.constraints import Limit, broken_sentence, resolve_limits, total_violation, violations


def search(constraints: dict[str, Any], **changes: Any) -> SearchConfig:
    section = {"constraints": constraints, **changes.pop("search", {})}
    return validate(SearchConfig, {"search": section, **changes})


def test_a_config_comes_back_from_its_own_json() -> None:
    given = {"model_utility": {"min": "0.950 of target"}, "kl_retain": {"max": 0.01}, "forget_quality": {"min": 0.05}}
    config = search(given)
    assert config.search.constraints["model_utility"].min == "0.95 of target"
    again = validate(SearchConfig, json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again.search.constraints == config.search.constraints
    assert config.measured == ("ks_statistic", "model_utility", "kl_retain", "forget_quality")


@pytest.mark.parametrize(
    ("constraints", "sentence"),
    [
        ({"model_utilty": {"min": 0.5}}, "Unknown metric 'model_utilty' in search.constraints: .*model_utility"),
        (
            {"model_utility": {}},
            r"search\.constraints\.model_utility' .* a constraint needs min or max, such as \{min:",
        ),
        ({"model_utility": {"min": "most of target"}}, r"search\.constraints\.model_utility\.min' .*'0\.95 of target'"),
        ({"model_utility": {"min": "0 of target"}}, "'0.95 of target'"),
        ({"model_utility": {"min": "-1 of target"}}, "'0.95 of target'"),
        (
            {"model_utility": {"min": float("nan")}},
            r"model_utility\.min' has the value nan, but this is neither a number",
        ),
        ({"model_utility": {"minimum": 0.5}}, r"search\.constraints\.model_utility\.minimum"),
        ({"model_utility": 0.5}, r"search\.constraints\.model_utility"),
        ({"model_utility": {"min": [0.5]}}, "this is neither a number"),
        ({"model_utility": {"min": True}}, "no number"),
        ({"model_utility": {"min": 0.6, "max": 0.5}}, "no value lies between"),
        ({"model_utility": {"min": "0.9 of target", "max": "0.8 of target"}}, "no value lies between"),
        ({"model_utility": {"min": 1.5}}, "min is 1.5, and model_utility never exceeds 1"),
        ({"kl_retain": {"max": -0.1}}, "max is -0.1, and kl_retain never is below 0"),
        ({"kl_retain": {"max": "2 of target"}}, "the target does not diverge from itself: give a number"),
        ({"logit_lens": {"min": "2 of target"}}, "the target has forgotten nothing: give a number"),
        ({"seconds": {"max": "2 of target"}}, "the target costs nothing to make: give a number"),
        ({"log10_forget_quality": {"min": "2 of target"}}, "log10_forget_quality can be negative: give a number"),
        ({"alignment_forget_cka": {"min": 0.5}}, "which a trial does not compute: only ofmu evaluate"),
        ({"unlearning_accuracy": {"min": 50}}, "which a trial does not compute: the data are text"),
        ({"membership_min_k": {"max": 0.6}}, "evaluation.membership is false; set it to true"),
        ({"in_scope_paraphrase_rouge": {"max": 0.6}}, "evaluation.in_scope is false; set it to true"),
    ],
)
def test_what_cannot_be_kept_or_measured_is_refused_in_one_sentence(constraints: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        search(constraints)
    assert "\n" not in str(refused.value)


def test_a_metric_that_the_config_turns_off_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.rouge is false"):
        search({"retain_rouge": {"min": 0.5}}, evaluation={"rouge": False})
    with pytest.raises(ConfigError, match=r"reference\.source is 'none'"):
        search({"forget_quality": {"min": 0.05}}, reference={"source": "none"})
    with pytest.raises(ConfigError, match="the data are images"):
        search({"model_utility": {"min": 0.5}}, data={"source": "cifar10"})
    objectives = {"relearning_probability": "min", "model_utility": "max"}
    with pytest.raises(ConfigError, match="relearning_probability is measured at its end"):
        search({}, search={"objectives": objectives, "early_stopping": {"enabled": True}})


def test_trials_measure_what_the_search_names_and_nothing_else() -> None:
    plain = search({}).shared_settings()["evaluation"]
    assert not {"kl", "run_attacks"} & plain.keys()
    objectives = {"relearning_probability": "min", "model_utility": "max"}
    named = search(
        {"kl_retain": {"max": 0.1}, "quantization_4_model_utility": {"min": 0.1}}, search={"objectives": objectives}
    )
    assert named.shared_settings()["evaluation"] == {
        **plain,
        "kl": True,
        "run_attacks": ["relearning", "quantization_4"],
    }
    assert named.unlearn.evaluation.run_attacks == ("relearning", "quantization_4")


def test_a_search_may_name_the_depth_where_there_is_a_retrained_model() -> None:
    named = search({}, search={"objectives": {"unlearning_depth": "max", "model_utility": "max"}})
    assert named.shared_settings()["evaluation"] == {**search({}).shared_settings()["evaluation"], "depth": True}
    assert search({"logit_lens": {"min": 0.5}}).unlearn.evaluation.depth
    for source, path in (("none", None), ("scores", "scores.json")):
        with pytest.raises(ConfigError, match=f"reference.source is '{source}'; set it to 'retrain' or 'model'"):
            search({"unlearning_depth": {"min": 0.5}}, reference={"source": source, "path": path})
    with pytest.raises(ConfigError, match="only ofmu evaluate compares hidden states"):
        search({"alignment_forget_cka": {"min": 0.5}})
    objectives = {"unlearning_depth": "max", "model_utility": "max"}
    with pytest.raises(ConfigError, match="unlearning_depth is measured at its end"):
        search({}, search={"objectives": objectives, "early_stopping": {"enabled": True}})


def test_a_share_becomes_a_number_once_the_target_is_known() -> None:
    constraints = search({"model_utility": {"min": "0.9 of target"}, "kl_retain": {"max": 0.01}}).search.constraints
    assert resolve_limits(constraints, {}) == ((Limit("kl_retain", "max", 0.01),), ("model_utility",))
    limits, unknown = resolve_limits(constraints, {"model_utility": 0.8})
    assert limits == (Limit("model_utility", "min", pytest.approx(0.72)), Limit("kl_retain", "max", 0.01))
    assert unknown == ()
    assert [str(limit) for limit in limits] == ["model_utility ≥ 0.72", "kl_retain ≤ 0.01"]
    with pytest.raises(ConfigError, match="a share of the target's value, which is 0: give a number"):
        resolve_limits(constraints, {"model_utility": 0.0})
    both = search({"model_utility": {"min": "0.9 of target", "max": 0.5}}).search.constraints
    with pytest.raises(ConfigError, match=r"No value keeps both model_utility ≥ 0\.72 and model_utility ≤ 0\.5"):
        resolve_limits(both, {"model_utility": 0.8})


def test_a_violation_is_0_at_the_bound_and_1_at_the_worst_value() -> None:
    low, high = Limit("model_utility", "min", 0.8), Limit("forget_probability", "max", 0.2)
    assert [low.violation(value) for value in (0.8, 0.4, 0.0)] == [0.0, 0.5, 1.0]
    assert [high.violation(value) for value in (0.2, 0.6, 1.0)] == [0.0, pytest.approx(0.5), 1.0]
    assert max(low.violation(0.9), high.violation(0.1)) < 0
    unbounded = Limit("kl_retain", "max", 0.01)
    assert [unbounded.violation(value) for value in (0.01, 0.03)] == [0.0, pytest.approx(0.5)]
    assert unbounded.violation(1e9) == pytest.approx(1.0)
    assert unbounded.violation(0.0) == -1.0
    assert Limit("kl_retain", "max", 0.0).violation(0.0) == 0.0, "the target keeps a bound of 0"
    assert Limit("kl_retain", "max", 0.0).violation(0.001) > 0


def test_the_total_counts_only_what_is_violated() -> None:
    limits = (Limit("model_utility", "min", 0.8), Limit("kl_retain", "max", 0.01))
    metrics = {"model_utility": 0.4, "kl_retain": 0.001}
    found = violations(metrics, limits)
    assert found.keys() == {"model_utility:min", "kl_retain:max"}
    assert total_violation(found) == 0.5
    assert broken_sentence(metrics, limits) == "model_utility 0.4, not ≥ 0.8"
    assert total_violation(violations({"model_utility": 0.8, "kl_retain": 0.01}, limits)) == 0.0
