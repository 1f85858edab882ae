from __future__ import annotations

import re

from ofmu.run_config import UnlearnConfig
from tune.config import SearchConfig, search_config
from tune.study.baselines import PUBLISHED, baseline_settings, with_decided_baselines


def test_what_a_variant_fixes_holds_in_its_published_setting() -> None:
    plain = baseline_settings(UnlearnConfig())[PUBLISHED]
    assert plain["method.penalty_weight"] == 0.1
    first = baseline_settings(UnlearnConfig.model_validate({"method": {"variant": "first_order"}}))[PUBLISHED]
    assert (first["method.penalty_weight"], first["method.decorrelation"]) == (0.0, "none")
    assert first["method.inner_steps"] == plain["method.inner_steps"]


def published_and_drawn(**search: object) -> SearchConfig:
    return search_config(
        {
            "method": {"inner_lr": 0.01, "outer_lr": 0.001, "decorrelation": "none", "penalty_weight": 0.0},
            "search": {"space": {"method.outer_steps": {"low": 4, "high": 8}}, **search},
        }
    )


def test_a_costly_published_setting_is_left_out_and_the_sentence_names_both_costs() -> None:
    decided, sentence = with_decided_baselines(published_and_drawn())
    assert decided.search.baselines == ["target"]
    assert sentence is not None
    # K (6 T + 18) with T = 5 and K = 10, and with the double steps of its first checks.
    published = 10 * (5 * 6 + 18) + 4 + 12
    assert f"takes {published} gradient evaluations" in sentence
    # K (T + 1) with T = 2 and K = 6 in the mean, and g_f in the first and the last outer step.
    mean = int(re.findall(r"space (\d+)", sentence)[0])
    assert 15 <= mean <= 25


def test_a_published_setting_that_is_asked_for_stays() -> None:
    decided, sentence = with_decided_baselines(published_and_drawn(baselines=["target", "published"]))
    assert (decided.search.baselines, sentence) == (["target", "published"], None)


def test_a_published_setting_of_a_usual_cost_stays() -> None:
    decided, sentence = with_decided_baselines(search_config({"method": {"name": "npo"}}))
    assert (decided.search.baselines, sentence) == (["target", "published"], None)
