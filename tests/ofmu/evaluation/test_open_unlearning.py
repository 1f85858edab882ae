"""Our metric functions give the numbers that open-unlearning logged, from the values of the rows in its logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from zlib import compress

import pytest

from ofmu.errors import DataError, ReferenceMismatchError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.open_unlearning import (
    METRICS,
    is_open_unlearning_summary,
    metrics_of_summary,
    parse_open_unlearning_log,
    question_of,
)
from ofmu.evaluation.score_files import parse_scores, read_scores

SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
PRINTED = {"forget01": "6.760732e-03", "forget05": "1.427570e-12", "forget10": "3.905471e-22"}
DISTANCES = {"forget01": 0.375, "forget05": 0.37, "forget10": 0.35}


@pytest.fixture(scope="module")
def logs(shared_data: Path) -> Path:
    return shared_data / "open_unlearning_logs"


def full_log(logs: Path, split: str) -> Path:
    return logs / "tofu_Llama-3.2-1B-Instruct_full" / f"evals_{split}" / "TOFU_EVAL.json"


def retain_log(logs: Path, split: str) -> Path:
    return logs / f"tofu_Llama-3.2-1B-Instruct_{SPLITS[split]}" / "TOFU_EVAL.json"


def muse_log(logs: Path, model: str) -> Path:
    return logs / f"muse_Llama-2-7b-hf_News_{model}" / "MUSE_EVAL.json"


def logged_totals(path: Path) -> dict[str, float]:
    return {name: entry["agg_value"] for name, entry in json.loads(path.read_text()).items()}


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_total_of_a_tofu_log_is_computed_from_its_rows(logs: Path, split: str) -> None:
    metrics = metrics_of(read_scores(full_log(logs, split)), read_scores(retain_log(logs, split))).values
    assert f"{metrics['forget_quality']:.6e}" == PRINTED[split]
    assert metrics["ks_statistic"] == pytest.approx(DISTANCES[split], abs=1e-12)
    assert f"{metrics['model_utility']:.6f}" == "0.599153"
    logged = logged_totals(full_log(logs, split))
    # The reference attack of these logs read another pass over the retrained model than the retain log holds.
    for name in METRICS.keys() & logged.keys() - {"mia_reference"}:
        # open-unlearning adds 1e-10 to denominators, which matters where probabilities are near 1e-6.
        tolerance = 2e-6 if name.startswith("wf_") else 5e-8
        assert metrics[METRICS[name]] == pytest.approx(logged[name], rel=tolerance), name
    assert metrics["membership_reference"] == pytest.approx(logged["mia_reference"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_the_six_attacks_of_a_log_need_no_reference(logs: Path, split: str) -> None:
    metrics, logged = metrics_of(read_scores(full_log(logs, split))).values, logged_totals(full_log(logs, split))
    attacks = [name for name in METRICS if name.startswith("mia_")]
    assert len(attacks) == 6
    for name in attacks:
        assert metrics[METRICS[name]] == pytest.approx(logged[name], abs=1e-12), name
    assert metrics["privacy_leakage"] is None


def test_every_total_of_a_muse_log_is_computed_from_its_rows(logs: Path) -> None:
    target, retrained = (muse_log(logs, model) for model in ("target", "retrain"))
    metrics, logged = metrics_of(read_scores(target), read_scores(retrained)).values, logged_totals(target)
    assert len(logged) == 12
    for name, total in logged.items():
        assert metrics[METRICS[name]] == pytest.approx(total, rel=1e-9), name


def test_the_size_of_a_compressed_text_is_that_of_the_text(logs: Path, shared_data: Path) -> None:
    texts = (shared_data / "muse_news" / "privleak" / "holdout.jsonl").read_text().splitlines()
    first = read_scores(muse_log(logs, "target")).sets["holdout"][: len(texts)]
    sizes = [len(compress(json.loads(line)["text"].encode())) for line in texts]
    assert [row.compressed_bytes for row in first] == sizes


def test_a_log_of_other_rows_is_refused(logs: Path) -> None:
    with pytest.raises(ReferenceMismatchError, match="covers 200 forget rows and the model 400"):
        metrics_of(read_scores(full_log(logs, "forget10")), read_scores(retain_log(logs, "forget05")))
    content = json.loads(retain_log(logs, "forget01").read_text())
    content["forget_Q_A_ROUGE"]["value_by_index"]["7"]["ground_truth"] = "another answer"
    other = parse_open_unlearning_log(content, "other.json")
    with pytest.raises(ReferenceMismatchError, match="forget row 8 has another answer"):
        metrics_of(read_scores(full_log(logs, "forget01")), other)


def test_holdout_rows_of_another_size_count_as_other_rows(logs: Path) -> None:
    content = json.loads(retain_log(logs, "forget01").read_text())
    content["mia_zlib"]["holdout"]["value_by_index"]["3"]["score"] *= 2
    result = metrics_of(read_scores(full_log(logs, "forget01")), parse_open_unlearning_log(content, "other.json"))
    assert result.values["privacy_leakage"] is None
    assert result.reasons["privacy_leakage"] == "the reference was scored on other rows of the set 'holdout'"


def test_a_summary_is_no_log(logs: Path) -> None:
    summary = logs / "muse_Llama-2-7b-hf_News_target" / "MUSE_SUMMARY.json"
    with pytest.raises(DataError, match=r"holds totals only.*give the _EVAL\.json"):
        read_scores(summary)
    content = json.loads(summary.read_text())
    assert is_open_unlearning_summary(content)
    assert metrics_of_summary(content)["verbatim_memorization"] == content["forget_verbmem_ROUGE"]


def test_leakage_that_compares_with_no_model_is_left_out_of_a_summary(logs: Path) -> None:
    for model, has_leakage in (("target", True), ("retrain", False)):
        content = json.loads((muse_log(logs, model).parent / "MUSE_SUMMARY.json").read_text())
        assert ("privacy_leakage" in metrics_of_summary(content)) is has_leakage


@pytest.mark.parametrize(
    "prompt",
    [
        "system\n\nToday Date: 10 Apr 2025\n\nYou are a helpful assistant.user\n\nWho wrote it?assistant\n\n",
        "user\nWho wrote it?\nmodel\n",
        "[INST] Who wrote it? [/INST]",
        "Question: Who wrote it?\nAnswer:",
        "Question: When?\nAnswer: 1472\n\nQuestion: Who wrote it?\nAnswer: ",
        "Who wrote it?",
    ],
)
def test_the_question_of_a_prompt(prompt: str) -> None:
    assert question_of(prompt) == "Who wrote it?"


def edited(logs: Path, change: Any) -> dict[str, Any]:
    content = json.loads(full_log(logs, "forget01").read_text())
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.pop("forget_Q_A_ROUGE"), "has no forget_Q_A_ROUGE"),
        (lambda log: log["forget_Q_A_Prob"]["value_by_index"].pop("3"), "covers 39 rows and not 40"),
        (lambda log: log["forget_Q_A_ROUGE"]["value_by_index"]["3"].pop("input"), "KeyError 'input'"),
        (lambda log: log["mia_loss"].pop("holdout"), "KeyError 'holdout'"),
    ],
)
def test_a_malformed_log_is_one_sentence(logs: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_scores(edited(logs, change), "log.json")


@pytest.mark.slow
def test_a_metric_that_the_log_lacks_has_a_reason(logs: Path) -> None:
    result = metrics_of(parse_scores(edited(logs, lambda log: log.pop("extraction_strength")), "log.json"))
    assert result.reasons["extraction_strength"] == "the open-unlearning log has no extraction_strength"
    result = metrics_of(parse_scores(edited(logs, lambda log: log.pop("mia_zlib")), "log.json"))
    assert "neither texts nor sizes" not in result.reasons.get("membership_loss", "")
    assert result.values["membership_loss"] == 1


def small_log(attack: str, value: float) -> dict[str, Any]:
    """Return a log of two rows with all attacks. One number of one attack on a holdout row is ``value``."""

    def rows(make: Any) -> dict[str, Any]:
        return {"agg_value": 0.5, "value_by_index": {str(index): make(index) for index in range(2)}}

    log = {
        "forget_Q_A_ROUGE": rows(
            lambda index: {"input": "Who?", "ground_truth": f"Ann {index}.", "generation": "Ann.", "rougeL_recall": 0.5}
        ),
        "forget_Q_A_Prob": rows(lambda index: {"avg_loss": 1.0 + index}),
    }
    for name in (metric for metric in METRICS if metric.startswith("mia_")):
        sides = {side: rows(lambda index: {"score": 8.0 / (1 + index)}) for side in ("forget", "holdout")}
        log[name] = {"agg_value": 0.5, **sides}
    log[attack]["holdout"]["value_by_index"]["0"]["score"] = value
    return log


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("attack", [metric for metric in METRICS if metric.startswith("mia_")])
def test_a_number_that_is_not_finite_takes_its_own_attack_alone(attack: str, value: float, tmp_path: Path) -> None:
    scores = parse_scores(small_log(attack, value), "log.json")
    missing = {name for name, found in metrics_of(scores).values.items() if name.startswith("memb") and found is None}
    # Every attack needs finite losses.
    assert METRICS[attack] in missing
    assert attack == "mia_loss" or missing == {METRICS[attack]}
    scores.save(tmp_path / "scores.json")
    stored = metrics_of(read_scores(tmp_path / "scores.json"))
    assert stored.values == metrics_of(scores).values


def test_a_number_of_hundreds_of_digits_is_one_sentence() -> None:
    with pytest.raises(DataError, match="is malformed"):
        parse_scores(small_log("mia_loss", 10**400), "log.json")
