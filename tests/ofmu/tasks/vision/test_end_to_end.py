"""Runs from image files to a scored and saved classifier, in Python and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from image_files import write_folder, write_parquet
from ofmu.cli.main import main
from ofmu.errors import ConfigError, DataError, ModelError, ReferenceMismatchError
from ofmu.evaluator import evaluate
from ofmu.preparer import find_reference_scores, prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.load import task_family
from ofmu.tasks.preparation import Prepared
from ofmu.trainer import unlearn
from ofmu.vision.metrics import FIELD_METRICS

MODEL = {"resnet": {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1]}}


def mapping(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "data": {"source": "cifar10", "path": str(path), "vision": {"forget_class": "dog", "image_size": 8}},
        "training": {"epochs": 6, "batch_size": 16, "learning_rate": 0.01},
        "method": {"name": "graddiff", "steps": 6, "lr": 3e-3, "batch_size": 8},
        "engine": {"device": "cpu", "threads": 1},
        "evaluation": {"batch_size": 16},
    } | changes


def config(given: Mapping[str, Any]) -> UnlearnConfig:
    return UnlearnConfig.model_validate(given)


def sets_of(prepared: Prepared) -> Any:
    assert prepared.reference_scores is not None
    return json.loads(prepared.reference_scores.read_text())["sets"]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("images"), train=90, test=30)


@pytest.mark.slow
def test_target_and_retrained_model_are_built_once_and_learn_their_rows(parquet: Path) -> None:
    settings = config(mapping(parquet))
    assert find_reference_scores(settings) is None
    prepared = prepare(settings)
    assert set(prepared.created) == {"base", "target", "target_scores", "retrain", "reference_scores"}
    again = prepare(settings)
    assert not any(again.created.values())
    assert again.target == prepared.target
    assert find_reference_scores(settings) == prepared.reference_scores
    target, retrain = (evaluate(model, settings)["metrics"] for model in (prepared.target, prepared.retrain))
    assert target["unlearning_accuracy"] < 20 < 100 == retrain["unlearning_accuracy"]
    assert min(target["remaining_accuracy"], retrain["remaining_accuracy"]) > 90
    assert retrain["average_gap"] == 0
    stored = task_family("vision").stored_metrics(prepared.target_scores, prepared.reference_scores)
    assert stored.values == target
    with pytest.raises(DataError, match="holds no scores"):
        task_family("language").stored_metrics(prepared.target_scores, None)
    other = prepare(config(mapping(parquet, seed=1)))
    assert all(other.created.values())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_saved_classifier_has_the_reported_metrics(parquet: Path, tmp_path: Path, stage: int) -> None:
    settings = config(
        mapping(parquet, engine={"backend": "deepspeed", "device": "cpu", "threads": 1, "zero_stage": stage})
    )
    prepared = prepare(settings)
    result = unlearn(settings, tmp_path / "run", prepared=prepared)
    assert all(result.metrics[name] is not None for name in (*FIELD_METRICS, "average_gap", "seconds"))
    assert result.reasons == {}
    report = evaluate(result.model_dir)
    for name in FIELD_METRICS:
        assert report["metrics"][name] == result.metrics[name]
    assert report["reference"] == str(prepared.reference_scores)
    ended, started = (load_file(folder / "model.safetensors") for folder in (result.model_dir, prepared.target))
    assert ended.keys() == started.keys()
    statistics = [name for name in started if "running" in name or "tracked" in name]
    assert all(torch.equal(ended[name], started[name]) for name in statistics)
    moved = [name for name in started if not torch.equal(ended[name], started[name])]
    assert len(moved) > (len(started) - len(statistics)) / 2


@pytest.mark.slow
def test_ofmu_runs_on_images_with_exact_derivatives(parquet: Path, tmp_path: Path) -> None:
    method = {"outer_steps": 2, "inner_steps": 1, "derivative": "exact", "batch_size": 8}
    result = unlearn(config(mapping(parquet, method=method)), tmp_path / "run")
    assert result.metrics["outer_steps_taken"] == 2
    assert result.metrics["unlearning_accuracy"] is not None


@pytest.mark.slow
def test_a_saved_model_or_a_file_of_scores_is_a_reference(parquet: Path, tmp_path: Path) -> None:
    made = prepare(config(mapping(parquet)))
    for source, path in (("model", made.retrain), ("scores", made.reference_scores)):
        given = prepare(config(mapping(parquet, reference={"source": source, "path": str(path)})))
        assert given.retrain is None
        assert (
            json.loads(given.reference_scores.read_text())["sets"]
            == json.loads(made.reference_scores.read_text())["sets"]
        )
    without = prepare(config(mapping(parquet, reference={"source": "none"})))
    assert without.reference_scores is None
    report = evaluate(without.target, config(mapping(parquet, reference={"source": "none"})))
    assert report["metrics"]["average_gap"] is None
    assert report["reasons"]["average_gap"]


@pytest.mark.slow
def test_the_users_own_target_is_not_trained(parquet: Path) -> None:
    made = prepare(config(mapping(parquet)))
    model = {"path": str(made.target), "is_target": True, "base": str(made.base)}
    taken = prepare(config(mapping(parquet, model=model)))
    assert taken.target == made.target
    assert taken.retrain == made.retrain
    tuned = prepare(config(mapping(parquet, model={"path": str(made.target)})))
    assert tuned.base == made.target != tuned.target


@pytest.mark.slow
def test_the_users_own_image_folders_and_random_forgetting(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", {"ant": 12, "bee": 12})
    data = {"source": "images", "path": str(tmp_path / "images"), "vision": {"forget": "random", "image_size": 8}}
    settings = config(mapping(tmp_path, data=data, method={"name": "salun", "steps": 2, "batch_size": 4}))
    result = unlearn(settings, tmp_path / "run")
    assert all(result.metrics[name] is not None for name in FIELD_METRICS)


@pytest.mark.slow
def test_the_command_line_prepares_unlearns_and_evaluates(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "images.yaml"
    path.write_text(yaml.safe_dump(mapping(parquet)))
    assert main(["prepare", str(path)]) == 0
    assert main(["unlearn", str(path), "method={name: finetune, steps: 2}", "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run" / "model"), str(path)]) == 0
    shown = capsys.readouterr().out
    head, first, *_ = shown.splitlines()
    assert head.split() == ["metric", "value", "target", "retrained"]
    assert first.startswith("unlearning_accuracy")
    assert "average_gap" in shown
    assert "model utility" not in shown


def test_contradictory_settings_are_errors(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'npo' works on language tasks, and data\.source 'cifar10'"):
        config(mapping(parquet, method={"name": "npo"}))
    with pytest.raises(ValueError, match="'salun' works on vision tasks"):
        config({"method": {"name": "salun"}})
    with pytest.raises(ConfigError, match=r"set model\.base"):
        prepare(config(mapping(parquet, model={"path": str(tmp_path), "is_target": True})))
    with pytest.raises(ModelError, match="There is no model directory"):
        evaluate(tmp_path / "none", config(mapping(parquet)))
    made = prepare(config(mapping(parquet)))
    other = config(mapping(parquet, seed=1, reference={"source": "scores", "path": str(made.reference_scores)}))
    data = other.data.model_copy(update={"vision": other.data.vision.model_copy(update={"forget_class": "cat"})})
    with pytest.raises(ReferenceMismatchError, match="other images"):
        prepare(other.model_copy(update={"data": data}))


@pytest.mark.slow
def test_language_tasks_never_load_this_package() -> None:
    script = "import sys, ofmu.preparer, ofmu.trainer, ofmu.evaluator\nassert 'ofmu.vision' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.vision.label_column=labels", "has no column 'labels', which data.vision.label_column names"),
        ("data.vision.forget_class=dogg", "Unknown class 'dogg' in data.vision.forget_class: did you mean 'dog'?"),
        ("data.path=nowhere", "There is no directory nowhere"),
        ("model.path=nowhere/at/all", "There is no model directory nowhere/at/all"),
        ("data.vision.forget_clas=dog", "Unknown config key 'data.vision.forget_clas'"),
        ("method.name=saluun", "Unknown method 'saluun' in method.name: did you mean 'salun'?"),
    ],
)
def test_bad_input_gets_one_sentence(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    path = tmp_path / "images.yaml"
    path.write_text(yaml.safe_dump(mapping(parquet)))
    assert main(["prepare", str(path), override]) == 1
    errors = capsys.readouterr().err
    (line,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert sentence in line
    assert "Traceback" not in errors


def test_the_error_for_an_unreadable_image_names_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "images", {"ant": 3, "bee": 3})
    (tmp_path / "images" / "ant" / "1.png").write_bytes(b"")
    path = tmp_path / "images.yaml"
    path.write_text(yaml.safe_dump(mapping(tmp_path, data={"source": "images", "path": str(tmp_path / "images")})))
    assert main(["prepare", str(path)]) == 1
    assert "1.png cannot be read as an image" in capsys.readouterr().err


def test_settings_that_images_do_not_have_are_reported(parquet: Path, tmp_path: Path) -> None:
    given = mapping(parquet, evaluation={"batch_size": 16, "membership": True})
    assert [note for note in config(given).ineffective() if "evaluation.membership" in note]
    engine = {"device": "cpu", "threads": 1, "gradient_checkpointing": True}
    with pytest.raises(ModelError, match="gradient_checkpointing cannot work with a resnet"):
        unlearn(config(mapping(parquet, engine=engine)), tmp_path / "run")
