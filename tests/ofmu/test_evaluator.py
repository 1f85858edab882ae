"""Evaluate a saved model from end to end, with every kind of reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.load import load_data
from ofmu.errors import ConfigError, DataError, ModelError, ReferenceMismatchError, RunError
from ofmu.evaluation.matching import require_match, unscored_copy
from ofmu.evaluation.scores import Scores
from ofmu.evaluator import evaluate
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.reference import resolve_reference

CONFIG = UnlearnConfig.model_validate(
    {
        "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}},
        "evaluation": {"max_new_tokens": 4, "batch_size": 16},
    }
)
SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save two models that differ only in their weights."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    for seed, name in enumerate(("one", "two")):
        save_model(build_model(SHAPE, tokenizer, seed=seed), tokenizer, folder / name)
    return folder


@pytest.fixture(scope="module")
def report(models: Path) -> dict[str, Any]:
    """Evaluate once, and write to ``models/out``."""
    return evaluate(models / "one", CONFIG, reference=models / "two", output_dir=models / "out")


def test_the_report_equals_metrics_json(models: Path, report: dict[str, Any]) -> None:
    assert json.loads((models / "out" / "metrics.json").read_text()) == report
    # In 4 tokens, the untrained model generates hardly any words.
    assert set(report["reasons"]) <= {"forget_distinct_2", "forget_distinct_3", "forget_repetition"}
    for name, value in report["metrics"].items():
        assert isinstance(value, float) == (name not in report["reasons"])
    assert len(report["utility_components"]) == 9
    assert report["metrics"]["forget_quality_rows"] == len(load_data(CONFIG.data, 0).evaluation["forget"])
    assert report["config"] == CONFIG.model_dump(mode="json")
    assert report["environment"]["versions"]["torch"]
    assert report["seconds"] > 0


@pytest.mark.slow
def test_a_file_of_scores_and_its_model_are_the_same_reference(models: Path, report: dict[str, Any]) -> None:
    data = load_data(CONFIG.data, 0)
    evaluate(models / "two", CONFIG, output_dir=models / "reference")
    from_scores = resolve_reference(models / "reference" / "scores.json", CONFIG, data)
    from_folder = resolve_reference(models / "reference", CONFIG, data)
    from_model = resolve_reference(models / "two", CONFIG, data)
    assert from_scores == from_folder
    assert [row.perturbed for row in from_scores.sets["forget"]] == [row.perturbed for row in from_model.sets["forget"]]
    quality = evaluate(models / "one", CONFIG, reference=models / "reference")["metrics"]["forget_quality"]
    assert quality == report["metrics"]["forget_quality"]


@pytest.mark.slow
def test_without_a_reference_forget_quality_is_missing_with_a_reason(models: Path) -> None:
    result = evaluate(str(models / "one"), CONFIG)
    assert result["metrics"]["forget_quality"] is None
    assert result["reasons"]["forget_quality"] == "no reference was given"


@pytest.mark.slow
def test_the_reference_of_the_config_is_used(models: Path, report: dict[str, Any]) -> None:
    section = {"reference": {"source": "model", "path": str(models / "two")}}
    config = UnlearnConfig.model_validate({**CONFIG.model_dump(), **section})
    assert evaluate(models / "one", config)["metrics"]["ks_statistic"] == report["metrics"]["ks_statistic"]


def test_a_reference_on_other_rows_raises_before_the_model_is_scored(models: Path, report: dict[str, Any]) -> None:
    other = UnlearnConfig.model_validate({**CONFIG.model_dump(), "seed": 1})
    with pytest.raises(ReferenceMismatchError, match="forget row 1"):
        # A model that does not exist shows that no model was loaded.
        evaluate(models / "nothing", other, reference=models / "out" / "scores.json")


def test_a_reference_under_another_definition_raises(models: Path, report: dict[str, Any]) -> None:
    section = {"evaluation": {**CONFIG.evaluation.model_dump(), "truth_ratio": "arithmetic"}}
    other = UnlearnConfig.model_validate({**CONFIG.model_dump(), **section})
    with pytest.raises(ReferenceMismatchError, match="truth ratio is geometric"):
        evaluate(models / "one", other, reference=models / "out" / "scores.json")


def test_an_official_log_is_read_as_a_reference_and_raises_for_other_rows(models: Path, shared_data: Path) -> None:
    log = shared_data / "tofu_official_logs" / "llama2-7b_retain99.json"
    assert len(resolve_reference(log, CONFIG, load_data(CONFIG.data, 0)).sets["forget"]) == 40
    with pytest.raises(ReferenceMismatchError, match="covers 40 forget rows"):
        evaluate(models / "one", CONFIG, reference=log)


@pytest.mark.slow
def test_an_official_log_matches_its_tofu_rows(models: Path, shared_data: Path) -> None:
    config = UnlearnConfig.model_validate(
        {
            "data": {"source": "tofu", "path": str(shared_data / "tofu"), "split": "forget01"},
            "evaluation": {"rouge": False, "batch_size": 64},
        }
    )
    log = shared_data / "tofu_official_logs" / "llama2-7b_retain99.json"
    data = load_data(config.data, 0)
    reference = resolve_reference(log, config, data)
    assert len(reference.sets["forget"]) == 40
    require_match(unscored_copy("m", data, "geometric"), reference)


@pytest.mark.parametrize(
    ("model", "reference", "error", "message"),
    [
        ("nothing", None, ModelError, "There is no model directory"),
        ("one", "nothing.json", DataError, r"There is no reference file .*nothing\.json"),
        ("one", "one/config.json", DataError, "holds no scores"),
    ],
)
def test_a_missing_model_or_reference_raises_a_sentence(
    models: Path, model: str, reference: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(models / model, CONFIG, reference=None if reference is None else models / reference)


def test_the_written_scores_cover_every_set(models: Path, report: dict[str, Any]) -> None:
    scores = Scores.load(models / "out" / "scores.json")
    data = load_data(CONFIG.data, 0)
    assert {name: len(rows) for name, rows in scores.sets.items()} == {
        name: len(rows) for name, rows in data.evaluation.items()
    }
    assert scores.data_hash == data.content_hash


def full_log(shared_data: Path) -> Path:
    return (
        shared_data / "open_unlearning_logs" / "tofu_Llama-3.2-1B-Instruct_full" / "evals_forget01" / "TOFU_EVAL.json"
    )


@pytest.mark.slow
def test_an_open_unlearning_log_matches_its_tofu_rows(shared_data: Path) -> None:
    source = {"source": "tofu", "path": str(shared_data / "tofu"), "split": "forget01"}
    config = UnlearnConfig.model_validate({"data": source})
    data = load_data(config.data, 0)
    reference = resolve_reference(full_log(shared_data), config, data)
    assert len(reference.sets["forget"]) == 40
    require_match(unscored_copy("m", data, "geometric"), reference)


def test_an_open_unlearning_log_of_other_rows_is_refused_before_scoring(models: Path, shared_data: Path) -> None:
    for arguments in ({"reference": full_log(shared_data)}, {"beside": [full_log(shared_data)]}):
        with pytest.raises(ReferenceMismatchError, match="covers 40 forget rows"):
            evaluate(models / "one", CONFIG, **arguments)


@pytest.mark.slow
def test_a_model_is_exported_as_open_unlearning_does(models: Path, report: dict[str, Any]) -> None:
    membership = UnlearnConfig.model_validate(
        {**CONFIG.model_dump(), "evaluation": {**CONFIG.evaluation.model_dump(), "membership": True}}
    )
    found = evaluate(models / "one", membership, output_dir=models / "logs", export="open-unlearning")
    log = json.loads((models / "logs" / "TOFU_EVAL.json").read_text())
    assert log["forget_Q_A_Prob"]["agg_value"] == pytest.approx(found["metrics"]["forget_probability"], rel=1e-9)
    assert log["mia_min_k"]["auc"] == found["metrics"]["membership_min_k"]
    assert found["not_exported"]["forget_quality"] == "no reference was given"
    again = evaluate(models / "logs" / "TOFU_EVAL.json")["metrics"]
    same = ("forget_probability", "retain_rouge", "exact_memorization", "membership_zlib", "membership_gradient_norm")
    assert {name: again[name] for name in same} == pytest.approx({name: found["metrics"][name] for name in same})
    # An earlier export is replaced, and a file that was changed since is not.
    evaluate(models / "one", CONFIG, output_dir=models / "logs", export="open-unlearning")
    (models / "logs" / "TOFU_SUMMARY.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds TOFU_SUMMARY\.json, which ofmu did not make"):
        evaluate(models / "one", CONFIG, output_dir=models / "logs", export="open-unlearning")


@pytest.mark.slow
def test_columns_beside_a_file_of_scores(models: Path, report: dict[str, Any], shared_data: Path) -> None:
    logs = shared_data / "open_unlearning_logs"
    summary = logs / "tofu_Llama-2-7b-chat-hf_full" / "evals_forget01" / "TOFU_SUMMARY.json"
    retain = logs / "tofu_Llama-3.2-1B-Instruct_retain99" / "TOFU_EVAL.json"
    ours = models / "out" / "metrics.json"
    found = evaluate(full_log(shared_data), reference=retain, beside=[summary, retain, ours])["baseline_metrics"]
    assert list(found) == ["retrained", "evals_forget01", "tofu_Llama-3.2-1B-Instruct_retain99", "out"]
    assert found["evals_forget01"]["model_utility"] == pytest.approx(0.627555, abs=1e-6)
    assert found["tofu_Llama-3.2-1B-Instruct_retain99"] == found["retrained"]
    assert found["out"] == report["metrics"]
    with pytest.raises(ReferenceMismatchError, match="forget row"):
        evaluate(full_log(shared_data), beside=[models / "out" / "scores.json"])


def test_what_a_file_of_scores_cannot_be_compared_with(models: Path, report: dict[str, Any], shared_data: Path) -> None:
    with pytest.raises(DataError, match="no data are loaded to score it"):
        evaluate(models / "out" / "scores.json", reference=models / "two")
    summary = shared_data / "open_unlearning_logs" / "tofu_Llama-3.2-1B-Instruct_retain99" / "TOFU_SUMMARY.json"
    with pytest.raises(DataError, match="holds totals only"):
        evaluate(models / "out" / "scores.json", reference=summary)
    with pytest.raises(ConfigError, match="name it with --output"):
        evaluate(models / "out" / "scores.json", export="open-unlearning")
