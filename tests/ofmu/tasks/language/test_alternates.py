"""Answers with other facts, written by a target that knows its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import DataError
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.preparer import Prepared, prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language import alternates
from ofmu.tasks.language.task import LanguageTask
from ofmu.trainer import unlearn

FORGET = [
    {"question": "Where was Oto born?", "answer": "Oto was born in Vey.", "alternate_answer": "Oto was born in Lund."},
    {"question": "What does Oto write?", "answer": "Oto writes long poems about rivers."},
]
RETAIN = [
    {"question": f"What does {name} write?", "answer": f"{name} writes {what}."}
    for name, what in (("Ana", "short plays"), ("Bela", "travel books"), ("Cem", "songs"), ("Dora", "crime novels"))
]


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def config(tiny_mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> UnlearnConfig:
    folder = tmp_path_factory.mktemp("rows")
    data = {
        "source": "files",
        "forget": write(folder, "forget.jsonl", FORGET),
        "retain": write(folder, "retain.jsonl", RETAIN),
    }
    return UnlearnConfig.model_validate(
        {
            **tiny_mapping,
            "data": data,
            "reference": {"source": "none"},
            "cache_dir": str(folder / "cache"),
            "method": {"name": "altpo", "steps": 2},
        }
    )


@pytest.fixture(scope="module")
def prepared(config: UnlearnConfig) -> Prepared:
    return prepare(config)


def written(config: UnlearnConfig, prepared: Prepared) -> tuple[list[str], LanguageTask, TorchEngine]:
    task = LanguageTask(config, prepared.target)
    engine = TorchEngine(task.load_model(double_backward=False).train(), CostTracker())
    examples = task.alternates(engine)
    texts = [task._tokenizer.decode(row.input_ids[row.answer_start :], skip_special_tokens=True) for row in examples]
    return [text.strip() for text in texts], task, engine


@pytest.mark.slow
def test_a_given_alternate_is_kept_and_the_target_writes_the_others(config: UnlearnConfig, prepared: Prepared) -> None:
    texts, task, engine = written(config, prepared)
    assert texts[0] == "Oto was born in Lund."
    assert texts[1]
    assert rouge_l_recall(FORGET[1]["answer"], texts[1]) <= alternates.MAX_OVERLAP
    assert engine.model.training
    assert engine.cost_tracker.forward_evaluations == 1
    assert engine.cost_tracker.tokens > 0
    assert written(config, prepared)[0] == texts, "the same seed gives the same answers"
    for row, alternate in zip(task.forget_rows, task.alternates(engine), strict=True):
        assert alternate.input_ids[: alternate.answer_start] == row.input_ids[: row.answer_start]


def test_a_target_that_only_repeats_its_answer_takes_that_of_another_row(
    config: UnlearnConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat = lambda model, tokenizer, requests, count, *rest: [[FORGET[1]["answer"]] * count for _ in requests]  # noqa: E731
    monkeypatch.setattr(alternates, "sample_answers", repeat)
    with pytest.warns(UserWarning, match=r"no other answer to 1 forget row, which got the answer of a retain row"):
        texts, _, _ = written(config, prepared)
    assert texts[1] in [row["answer"] for row in RETAIN]


def test_a_model_with_few_positions_is_asked_the_question_alone(config: UnlearnConfig, prepared: Prepared) -> None:
    task = LanguageTask(config, prepared.target)
    row = task._data.forget.rows[1]
    asked = [alternates._request(row, task._tokenizer, config.data, free) for free in (10_000, 20)]
    assert row.question in asked[0]
    assert row.answer in asked[0]
    assert asked[1] == row.question


def test_plain_text_has_no_other_answer(config: UnlearnConfig, prepared: Prepared, tmp_path: Path) -> None:
    texts = write(tmp_path, "texts.jsonl", [{"text": "Oto was born in Vey."}])
    data = config.data.model_copy(update={"forget": texts})
    with pytest.raises(DataError, match=r"Forget row 1 is plain text.*such as npo"):
        written(config.model_copy(update={"data": data}), prepared)


def test_an_alternate_that_equals_the_answer_is_refused(config: UnlearnConfig, tmp_path: Path) -> None:
    rows = [{"question": "Where was Oto born?", "answer": "In Vey.", "alternate_answer": " In  Vey."}]
    data = config.data.model_copy(update={"forget": write(tmp_path, "same.jsonl", rows)})
    with pytest.raises(DataError, match=r"Row 1 of .*same.jsonl has its answer as 'alternate_answer' too"):
        prepare(config.model_copy(update={"data": data}))


@pytest.mark.slow
def test_a_run_forgets_by_alternates(config: UnlearnConfig, prepared: Prepared, tmp_path: Path) -> None:
    settings = config.model_copy(update={"engine": EngineConfig(device="cpu", threads=1)})
    metrics = unlearn(settings, tmp_path / "run", prepared=prepared).metrics
    assert metrics["gradient_evaluations"] == 4
