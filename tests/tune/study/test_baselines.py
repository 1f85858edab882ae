from __future__ import annotations

from ofmu.run_config import UnlearnConfig
from tune.study.baselines import PUBLISHED, baseline_settings


def test_what_a_variant_fixes_holds_in_its_published_setting() -> None:
    plain = baseline_settings(UnlearnConfig())[PUBLISHED]
    assert plain["method.penalty_weight"] == 0.1
    first = baseline_settings(UnlearnConfig.model_validate({"method": {"variant": "first_order"}}))[PUBLISHED]
    assert (first["method.penalty_weight"], first["method.decorrelation"]) == (0.0, "none")
    assert first["method.inner_steps"] == plain["method.inner_steps"]
