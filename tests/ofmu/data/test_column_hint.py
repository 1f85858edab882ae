"""The sentence for a missing column names the settings with which the file can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ofmu.data.config import ColumnsConfig
from ofmu.data.files import read_rows
from ofmu.errors import DataError
from ofmu.run_config import UnlearnConfig


def sentence(folder: Path, record: dict[str, object], columns: ColumnsConfig | None = None) -> str:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError) as caught:
        read_rows(path, columns or ColumnsConfig())
    return str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("prompt", "completion"),
        ("instruction", "output"),
        ("Query", "Response"),
        ("question", "response"),
        ("prompt", "answer"),
        ("input", "target"),
    ],
)
def test_the_hint_is_a_setting_with_which_the_file_is_read(tmp_path: Path, names: tuple[str, str]) -> None:
    said = sentence(tmp_path, {names[0]: "Who wrote it?", names[1]: "Ada.", "id": "3"})
    entries = re.findall(r"data\.columns\.\w+=\S+", said)
    columns = UnlearnConfig.read(None, entries).data.columns
    (row,) = read_rows(tmp_path / "rows.jsonl", columns)
    assert (row.question, row.answer) == ("Who wrote it?", "Ada.")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"questoin": "q", "answer": "a"}, "did you mean 'questoin'? Rename it, or set data.columns.question=questoin"),
        ({"Question": "q", "Answer": "a"}, "data.columns.question=Question"),
        ({"messages": [{"role": "user", "content": "q"}]}, "write each exchange of 'messages' as a row"),
        ({"content": "a long text", "id": 3}, "if its rows are plain text, set data.columns.text=content"),
        ({"a": "q", "b": "a"}, "its columns are a, b; set data.columns.question and data.columns.answer"),
        ({"question": "q"}, "write its answer there, or remove the row; its columns are question, and if one of them"),
        ({"answer": "a", "b": "q"}, "write its question there, or remove the row; its columns are answer, b, and"),
        ({"prompt": "q", "b": "a"}, "its columns are prompt, b; set data.columns.question"),
        ({}, "its columns are none"),
    ],
)
def test_no_column_is_guessed_that_the_file_does_not_mean(
    tmp_path: Path, record: dict[str, object], words: str
) -> None:
    assert words in sentence(tmp_path, record)


def test_a_column_that_the_config_names_is_missed_by_its_name(tmp_path: Path) -> None:
    said = sentence(tmp_path, {"prompt": "q", "completion": "a"}, ColumnsConfig(question="prompt", answer="reply"))
    assert "has no column 'reply': set data.columns.answer=completion" in said
