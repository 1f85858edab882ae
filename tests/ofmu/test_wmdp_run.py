"""A WMDP run on a harmless corpus: preparation, unlearning by GradDiff, scores of multiple-choice questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from ofmu import UnlearnConfig, evaluate, unlearn
from ofmu.preparer import prepare
from wmdp_corpus import write_corpus

ACCURACIES = [f"{name}_{answer}_accuracy" for name in ("forget", "utility") for answer in ("letter", "choice")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> UnlearnConfig:
    files = write_corpus(tmp_path_factory.mktemp("wmdp"))
    return UnlearnConfig.model_validate(
        {
            "model": {"scratch": {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 384}},
            "data": {"source": "wmdp", "max_length": 160, "wmdp": files},
            "training": {"epochs": 30, "batch_size": 8, "learning_rate": 5e-3},
            "method": {"name": "graddiff", "steps": 12, "lr": 1e-3},
            "engine": {"device": "cpu", "threads": 1},
            "evaluation": {"rouge": False, "batch_size": 64},
        }
    )


@pytest.mark.slow
def test_a_run_forgets_the_corpus_and_reports_question_accuracies(config: UnlearnConfig, tmp_path: Path) -> None:
    prepared = prepare(config)
    before = evaluate(prepared.target, config)["metrics"]
    result = unlearn(config, tmp_path / "run", prepared=prepared)
    after = evaluate(result.model_dir, config)["metrics"]
    for name in ACCURACIES:
        assert 0 <= before[name] <= 1
        assert after[name] == result.metrics[name]
    assert before["utility_choice_accuracy"] >= 0.5, "a trained model answers questions about its corpus"
    assert after["forget_probability"] < 0.5 * before["forget_probability"]
    assert after["retain_probability"] > 0.5 * before["retain_probability"]
