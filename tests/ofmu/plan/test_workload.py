"""A plan counts the tokens that scoring reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofmu.data.load import load_data
from ofmu.data.questions import Question
from ofmu.evaluation.scoring.model import score_model
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.plan import workload as module
from ofmu.plan.workload import Workload, workload
from ofmu.run_config import UnlearnConfig
from wmdp_corpus import write_corpus

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)


@pytest.fixture
def config(tmp_path: Path) -> UnlearnConfig:
    data = {"source": "wmdp", "max_length": 128, "wmdp": write_corpus(tmp_path)}
    return UnlearnConfig.model_validate({"data": data, "evaluation": {"rouge": False, "batch_size": 64}})


@pytest.fixture
def pair(config: UnlearnConfig) -> tuple[Any, Any]:
    texts = [row.answer for row in load_data(config.data, 0).forget.rows]
    tokenizer = train_tokenizer(texts, 300)
    return build_model(SHAPE, tokenizer, seed=0, max_positions=256).eval(), tokenizer


def workload_of(config: UnlearnConfig, pair: tuple[Any, Any], folder: Path, **options: Any) -> Workload:
    save_model(*pair, folder / "model")
    return workload(config, pair[0].config.to_dict(), folder / "model", **options)


def without_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any) -> Any:
        data = load_data(*arguments)
        data.questions.clear()
        return data

    monkeypatch.setattr(module, "load_data", load)


def test_multiple_choice_questions_count_as_scoring_reads_them(config, pair, tmp_path, monkeypatch):
    read = score_model(*pair, load_data(config.data, 0), config.evaluation, config.data).forward_tokens["choices"]
    whole = workload_of(config, pair, tmp_path)
    without_questions(monkeypatch)
    rows = workload_of(config, pair, tmp_path)
    counted = whole.evaluation_tokens - rows.evaluation_tokens
    # Scoring also reads padding.
    assert 0.8 * read < counted <= read
    assert whole.partial_tokens(10**6) - rows.partial_tokens(10**6) == counted
    # Each of the two sets has eight questions.
    assert whole.partial_tokens(2) - rows.partial_tokens(2) == pytest.approx(counted / 4)
    assert whole.evaluation_rows == rows.evaluation_rows


def test_of_many_questions_some_are_encoded(config, pair, tmp_path, monkeypatch):
    whole = workload_of(config, pair, tmp_path)
    monkeypatch.setattr(module, "_MOST_QUESTIONS", 3)
    asked: list[Question] = []
    encoded_choices = module.encoded_choices
    monkeypatch.setattr(
        module, "encoded_choices", lambda *arguments: asked.append(arguments[1]) or encoded_choices(*arguments)
    )
    some = workload_of(config, pair, tmp_path)
    assert len(asked) == 2 * 3
    assert some.evaluation_tokens == pytest.approx(whole.evaluation_tokens, rel=0.1)


def test_rows_that_are_not_encoded_count_with_their_questions(config, pair, tmp_path, monkeypatch):
    whole = workload_of(config, pair, tmp_path, encode=False)
    without_questions(monkeypatch)
    rows = workload_of(config, pair, tmp_path, encode=False)
    # Two sets of eight questions with two prompts each.
    assert whole.evaluation_tokens - rows.evaluation_tokens == 2 * 8 * 2 * 128
    assert whole.partial_tokens(4) - rows.partial_tokens(4) == 2 * 4 * 2 * 128
