"""Custom metrics: how their functions are found, and which return values count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ofmu.errors import ConfigError
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.metrics.custom import load_custom_metric, with_custom_metrics
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.load import task_family

MODULE = """
import math

def worst_row(scores, reference):
    return max(math.exp(-row.answer.mean) for row in scores.sets["forget"])

def distance(scores, reference):
    return abs(scores.sets["forget"][0].answer.nll - reference.sets["forget"][0].answer.nll)

def text(scores, reference): return "0.5"
def nothing(scores, reference): return None
def truth(scores, reference): return True
def nan(scores, reference): return math.nan
def broken(scores, reference): return scores.sets["missing"]
def of_one(scores): return 1.0
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the working directory. The directory is not on ``sys.path``."""
    name = f"users_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def scores(*nlls: float) -> Scores:
    rows = tuple(
        RowScores(question=f"q{index}", ground_truth="a", row_hash=str(index), answer=AnswerLoss(nll, 2))
        for index, nll in enumerate(nlls)
    )
    return Scores(model="m", truth_ratio="geometric", sets={"forget": rows})


def test_a_function_gets_the_scores_and_the_reference_s_scores(module, tmp_path):
    names = [f"{module}:worst_row", f"{module}:distance"]
    own, reference = scores(2.0, 0.5), scores(3.25, 1.0)
    found = with_custom_metrics(metrics_of, names)(own, reference)
    assert found.values[names[0]] == pytest.approx(0.7788007830714049)  # e^(−1/4)
    assert found.values[names[1]] == 1.25
    assert found.values["forget_probability"] == metrics_of(own).values["forget_probability"]
    own.save(tmp_path / "own.json")
    reference.save(tmp_path / "reference.json")
    stored = task_family("language").stored_metrics(tmp_path / "own.json", tmp_path / "reference.json", names)
    assert [stored.values[name] for name in names] == [found.values[name] for name in names]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("text", "returned '0.5', which is a str and not a number"),
        ("nothing", "returned None, which is a NoneType and not a number"),
        ("truth", "returned True, which is a bool and not a number"),
        ("nan", "returned nan, which is not finite"),
        ("broken", "raised KeyError: 'missing'"),
        ("of_one", "raised TypeError"),
    ],
)
def test_a_result_that_is_no_number_is_missing_with_a_reason(module, function, reason):
    name = f"{module}:{function}"
    found = with_custom_metrics(metrics_of, [name])(scores(1.0), None)
    assert found.values[name] is None
    assert reason in found.reasons[name]


def test_a_function_that_cannot_be_found_raises(module, tmp_path):
    for name, sentence in (
        ("no_such_module_anywhere:leak", "'no_such_module_anywhere' cannot be imported"),
        (f"{module}:absent", "has no function 'absent'"),
        (f"{module}:number", "has no function 'number'"),
        (f"{module}:", "must have the form"),
        ("not-a-module:f", "must have the form"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load_custom_metric(name)
    (tmp_path / "users_broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="'users_broken' fails while it is imported"):
        load_custom_metric("users_broken:leak")


@pytest.mark.slow
def test_the_installed_command_finds_modules_of_the_working_directory(module, tmp_path):
    script = (
        "import sys; sys.path = [entry for entry in sys.path if entry]\n"
        f"from ofmu.evaluation.metrics.custom import load_custom_metric; load_custom_metric('{module}:nan')"
    )
    finished = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_a_config_without_custom_metrics_is_stored_without_the_key():
    assert "custom_metrics" not in UnlearnConfig().model_dump(mode="json")["evaluation"]
    config = EvaluationConfig(custom_metrics=("a.b:c",))
    assert EvaluationConfig.model_validate(config.model_dump(mode="json")) == config
