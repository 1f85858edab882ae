"""Rows that earlier runs forgot are not retained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.errors import DataError
from ofmu.run_config import UnlearnConfig


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"Question {number}?", "answer": f"Answer {number}.", **more}


def config(folder: Path, **more: Any) -> DataConfig:
    given = {"source": "files", "forget": write(folder / "forget.jsonl", row(1), row(2))}
    retain = [row(3), row(4), row(5), {"question": "  question 6? ", "answer": "ANSWER\u200b 6."}]
    return DataConfig.model_validate(given | {"retain": write(folder / "retain.jsonl", *retain)} | more)


def test_earlier_rows_leave_the_retain_rows_and_the_scored_ones(tmp_path: Path):
    earlier = (write(tmp_path / "1.jsonl", row(4)), write(tmp_path / "2.jsonl", row(6, paraphrased_answer="Six.")))
    data = load_data(config(tmp_path, earlier=earlier), seed=0)
    assert [each.question for each in data.retain.rows] == ["Question 3?", "Question 5?"]
    assert data.evaluation["retain"].rows == data.retain.rows
    whole = load_data(config(tmp_path), seed=0)
    assert len(whole.retain) == 4
    assert whole.content_hash != data.content_hash


def test_a_row_may_be_forgotten_again(tmp_path: Path):
    data = load_data(config(tmp_path, earlier=(write(tmp_path / "1.jsonl", row(1)),)), seed=0)
    assert len(data.forget) == len(data.evaluation["forget"]) == 2


def test_a_holdout_row_that_was_forgotten_once_was_trained_on(tmp_path: Path):
    holdout = write(tmp_path / "holdout.jsonl", row(9))
    load_data(config(tmp_path, holdout=holdout), seed=0)
    with pytest.raises(DataError, match=r"is also in the earlier forget set.*remove row 1 of "):
        load_data(config(tmp_path, holdout=holdout, earlier=(write(tmp_path / "1.jsonl", row(9)),)), seed=0)


def test_a_retain_set_that_was_forgotten_as_a_whole_is_an_error(tmp_path: Path):
    earlier = write(tmp_path / "1.jsonl", *(row(number) for number in range(3, 7)))
    with pytest.raises(DataError, match="Earlier runs forgot every row of the retain set"):
        load_data(config(tmp_path, earlier=(earlier,)), seed=0)


def test_a_stored_config_without_earlier_rows_has_no_such_key():
    assert "earlier" not in DataConfig().model_dump(mode="json")
    assert DataConfig(earlier=("a",)).model_dump(mode="json")["earlier"] == ["a"]
    images = UnlearnConfig.model_validate({"data": {"source": "cifar10", "earlier": ["a"]}})
    assert images.data.earlier == ("a",)
