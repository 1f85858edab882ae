"""The two files of LUME."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData, row_key
from ofmu.errors import ConfigError, DataError

ROW = {"id": "a-sc1", "input": "It was a dark", "output": "and stormy night.", "task": "Task1"}


def load(path: Path | None) -> UnlearnData:
    return load_data(DataConfig.model_validate({"source": "lume", "path": None if path is None else str(path)}), 0)


def write(folder: Path, forget: list[dict[str, Any]]) -> Path:
    retain = [{"id": "b-qa0", "input": "Who?", "output": "Ann", "task": "Task3"}]
    for name, rows in (("forget", forget), ("retain", retain)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rows_and_their_parts(tmp_path: Path) -> None:
    data = load(write(tmp_path, [ROW, ROW | {"id": "a-qa10", "input": "When?"}]))
    forget = data.evaluation["forget"]
    assert [row.answer for row in forget.rows] == ["and stormy night."] * 2
    # The official script drops one character of an id, so it leaves out a row whose number has two digits.
    assert [forget.parts.get(row_key(row)) for row in forget.rows] == ["task1_regurgitation", None]
    assert list(data.evaluation["retain"].parts.values()) == ["task3_knowledge"]
    assert forget.prompting is not None
    assert (forget.prompting.template, forget.prompting.max_new_tokens) == ("{question}", 256)


@pytest.mark.slow
def test_the_published_files(shared_data: Path) -> None:
    data = load(shared_data / "lume")
    assert (len(data.forget), len(data.retain)) == (2732, 2734)
    records = [json.loads(line) for line in (shared_data / "lume" / "forget.jsonl").read_text().splitlines()]
    kinds = {"sc": "regurgitation", "qa": "knowledge"}
    expected = Counter(f"{each['task'].lower()}_{kinds[each['id'][:-1][-2:]]}" for each in records)
    forget = data.evaluation["forget"]
    assert Counter(forget.parts[row_key(row)] for row in forget.rows) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [({"task": None}, "has no text in column 'task'"), ({"output": " "}, "has no text in column 'output'")],
)
def test_bad_rows_are_one_sentence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, [ROW | change]))


def test_a_missing_column_or_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'id'"):
        load(write(tmp_path, [{key: value for key, value in ROW.items() if key != "id"}]))
    with pytest.raises(DataError, match="There is no LUME directory"):
        load(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        load(None)
