"""``~`` in the paths of models, tokenizers and references is the home directory, as in the paths of data files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chain_case import write_model
from ofmu.data.encoding import load_tokenizer
from ofmu.errors import ModelError
from ofmu.evaluation.scores import Scores
from ofmu.evaluator import evaluate
from ofmu.models.files import check_model_directory, check_tokenizer
from ofmu.models.hub import cached_directory, local_directory, looks_like_hub_id
from ofmu.models.scratch import train_tokenizer
from ofmu.provenance import config_of_run
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.reference_path import reference_scores_file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a run: its config, its scores and its model."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "run" / "model", 1.0)
    train_tokenizer(["Who wrote it?"] * 4, 280).save_pretrained(tmp_path / "run" / "model")
    for name in ("config.yaml", "scores.json"):
        (tmp_path / "run" / name).write_text("{}")
    return tmp_path


def test_a_model_below_the_home_directory_is_found(home: Path) -> None:
    model = home / "run" / "model"
    assert local_directory("~/run/model") == cached_directory("~/run/model") == model
    assert load_tokenizer("~/run/model").eos_token == load_tokenizer(str(model)).eos_token
    check_tokenizer("~/run/model", None)
    assert config_of_run("~/run/model") == home / "run" / "config.yaml"


def test_a_directory_below_the_home_directory_is_checked(home: Path) -> None:
    (home / "run" / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"The model directory ~/run/model has no \*\.safetensors weights"):
        check_model_directory("~/run/model")
    with pytest.raises(ModelError, match=r"There is no model directory ~/run/modle \(did you mean '.*/run/model'\?\)"):
        check_model_directory("~/run/modle")


def test_a_tokenizer_below_the_home_directory_serves_another_model(home: Path) -> None:
    bare = write_model(home / "bare", 2.0)
    shutil.copytree(home / "run" / "model", home / "words")
    check_tokenizer(str(bare), "~/words")
    assert load_tokenizer("~/bare", fallback="~/words").eos_token is not None
    with pytest.raises(ModelError, match="The model '~/bare' has no tokenizer"):
        check_tokenizer("~/bare", None)


def test_a_reference_below_the_home_directory_is_found(home: Path) -> None:
    assert reference_scores_file("~/run") == reference_scores_file("~/run/scores.json") == home / "run" / "scores.json"
    assert reference_scores_file("~/run/model") is None


def test_a_file_of_scores_below_the_home_directory_is_evaluated(home: Path) -> None:
    Scores(model="m", truth_ratio="geometric", sets={}).save(home / "run" / "scores.json")
    assert evaluate("~/run/scores.json", UnlearnConfig())["model"] == "~/run/scores.json"


def test_an_unknown_user_has_no_home_directory() -> None:
    with pytest.raises(ModelError, match="There is no model directory ~nosuchuser/model"):
        local_directory("~nosuchuser/model")
    assert not looks_like_hub_id("~nosuchuser/model")
