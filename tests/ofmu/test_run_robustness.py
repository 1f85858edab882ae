"""What a run measures of its own model equals what ofmu evaluate measures of the saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.errors import DataError
from ofmu.evaluation.config import ReferenceConfig
from ofmu.evaluation.metrics.registry import DEPTHS
from ofmu.evaluator import evaluate
from ofmu.run_config import UnlearnConfig
from ofmu.testing import run_script_on_ranks
from ofmu.trainer import unlearn

SLOW_RANK_ZERO = Path(__file__).resolve().parents[1] / "helpers" / "slow_rank_zero.py"
METHOD = {"name": "graddiff", "steps": 3, "lr": 2e-3, "batch_size": 4}
NAMES = ("kl_retain", "kl_general", "relearning_probability", "quantization_4_forget_probability", "sampled_leakage")


@pytest.fixture(scope="module")
def config(tiny_mapping: dict[str, Any]) -> UnlearnConfig:
    asked = {"kl": True, "run_attacks": ["relearning", "quantization_4", "sampling"]}
    return UnlearnConfig.model_validate(
        {**tiny_mapping, "method": METHOD, "evaluation": {**tiny_mapping.get("evaluation", {}), **asked}}
    )


def with_evaluation(config: UnlearnConfig, **changes: Any) -> UnlearnConfig:
    plain = {"kl": False, "run_attacks": ()}
    evaluation = config.evaluation.model_copy(update={**plain, **changes})
    return config.model_copy(update={"evaluation": evaluation})


@pytest.mark.slow
def test_a_run_measures_the_depth_that_ofmu_evaluate_measures(config: UnlearnConfig, tmp_path: Path) -> None:
    asked = with_evaluation(config, depth=True)
    found = unlearn(asked, tmp_path / "run")
    saved = evaluate(tmp_path / "run" / "model", asked)
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name in DEPTHS:
        assert found.metrics[name] == pytest.approx(saved["metrics"][name], rel=1e-5, abs=1e-6), name
        assert 0 < (found.metrics[name] or 0) <= 1
        assert len(report["depth"][name]["layers"]) == asked.model.scratch.num_layers
    assert report["depth"]["forward_tokens"] == saved["depth"]["forward_tokens"] > 0
    plain = unlearn(with_evaluation(config), tmp_path / "plain").metrics
    assert not set(DEPTHS) & plain.keys()
    same = ("ks_statistic", "model_utility", "forget_probability", "gradient_evaluations")
    assert [found.metrics[name] for name in same] == [plain[name] for name in same], "the run itself is the same"
    still = asked.model_copy(update={"method": config.method.model_copy(update={"steps": 0})})
    untouched = unlearn(still, tmp_path / "still").metrics
    assert [untouched[name] for name in DEPTHS] == pytest.approx([0.0, 0.0], abs=1e-5)


@pytest.mark.slow
def test_without_a_retrained_model_the_depth_is_missing_with_its_reason(config: UnlearnConfig, tmp_path: Path) -> None:
    asked = with_evaluation(config, depth=True).model_copy(update={"reference": ReferenceConfig(source="none")})
    with pytest.warns(UserWarning, match="evaluation.depth has no effect on a run: reference.source is 'none'"):
        found = unlearn(asked, tmp_path / "run")
    assert {found.metrics[name] for name in DEPTHS} == {None}
    assert all("there is no retrained model" in found.reasons[name] for name in DEPTHS)


@pytest.mark.slow
def test_entities_of_other_rows_end_a_run_before_its_first_step(config: UnlearnConfig, tmp_path: Path) -> None:
    path = tmp_path / "entities.jsonl"
    path.write_text(json.dumps({"question": "Who?", "answer": "Nobody at all", "entity": "Nobody"}) + "\n")
    asked = with_evaluation(config, depth=True, entities=str(path))
    with pytest.raises(DataError, match=r"which evaluation\.entities names, is a forget row"):
        unlearn(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists()


@pytest.mark.slow
def test_a_run_measures_and_counts_what_it_is_asked_for(config: UnlearnConfig, tmp_path: Path) -> None:
    plain = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"kl": False, "run_attacks": ()})}
    )
    without = unlearn(plain, tmp_path / "plain").metrics
    assert not set(NAMES) & without.keys()
    found = unlearn(config, tmp_path / "run").metrics
    saved = evaluate(tmp_path / "run" / "model", config)["metrics"]
    for name in NAMES:
        assert found[name] == pytest.approx(saved[name], rel=1e-4, abs=1e-7), name
    assert (found["kl_retain"] or 0) > 0
    assert found["gradient_evaluations"] == (without["gradient_evaluations"] or 0) + 10
    same = ("ks_statistic", "model_utility", "forget_probability")
    assert [found[name] for name in same] == [without[name] for name in same], "the run itself is the same"
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (len(report["relearning"]["curve"]), len(report["sampling"]["curve"])) == (11, 8)
    assert unlearn(config, tmp_path / "run").metrics == found, "a complete run returns what it stored"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("tmp")]


@pytest.mark.slow
def test_the_untouched_target_does_not_diverge(config: UnlearnConfig, tmp_path: Path) -> None:
    only = config.evaluation.model_copy(update={"run_attacks": ()})
    still = config.method.model_copy(update={"steps": 0})
    metrics = unlearn(config.model_copy(update={"evaluation": only, "method": still}), tmp_path / "run").metrics
    assert (metrics["kl_retain"], metrics["kl_general"]) == (0.0, 0.0)


@pytest.mark.slow
def test_without_a_prepared_target_the_divergence_is_missing_with_its_reason(
    config: UnlearnConfig, tmp_path: Path
) -> None:
    only = config.evaluation.model_copy(update={"run_attacks": ()})
    asked = config.model_copy(update={"evaluation": only})
    unlearn(asked, tmp_path / "run")
    elsewhere = asked.model_copy(
        update={"cache_dir": str(tmp_path / "empty"), "reference": ReferenceConfig(source="none")}
    )
    report = evaluate(tmp_path / "run" / "model", UnlearnConfig.model_validate(elsewhere.model_dump(mode="json")))
    assert report["metrics"]["kl_retain"] is None
    assert report["reasons"]["kl_retain"] == "the target is not in the cache: run ofmu prepare with the same config"


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_ranks_wait_for_attacks_and_checks_that_outlast_a_collective(config: UnlearnConfig, tmp_path: Path) -> None:
    asked = with_evaluation(config, run_attacks=["relearning"]).model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(asked | {"engine": {"device": "cpu", "zero_stage": 3}}))
    run_script_on_ranks(SLOW_RANK_ZERO, 2, str(tmp_path / "config.json"), str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert first == [metrics["relearning_probability"], "the attack cannot read the model"]
    assert 0 < first[0] < 1
    assert not (tmp_path / "failed" / "metrics.json").exists()
