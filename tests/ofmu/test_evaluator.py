"""Evaluate a saved model from end to end, with every kind of reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.load import load_data
from ofmu.errors import DataError, ModelError, ReferenceMismatchError
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


def test_without_a_reference_forget_quality_is_missing_with_a_reason(models: Path) -> None:
    result = evaluate(str(models / "one"), CONFIG)
    assert result["metrics"]["forget_quality"] is None
    assert result["reasons"]["forget_quality"] == "no reference was given"


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
