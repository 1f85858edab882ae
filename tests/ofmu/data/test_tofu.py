from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.data.tofu import hub_records
from ofmu.errors import DataError


def _records(folder: Path, name: str) -> list[dict[str, Any]]:
    text = (folder / f"{name}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _load(folder: Path, **settings: Any) -> UnlearnData:
    return load_data(DataConfig(source="tofu", path=str(folder), **settings), seed=0)


@pytest.fixture
def tofu(shared_data: Path) -> Path:
    return shared_data / "tofu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "retain", "rows"),
    [("forget01", "retain99", 40), ("forget05", "retain95", 200), ("forget10", "retain90", 400)],
)
def test_a_split_is_read_as_published(tofu: Path, split: str, retain: str, rows: int) -> None:
    data = _load(tofu, split=split)

    assert [row.question for row in data.forget.rows] == [r["question"] for r in _records(tofu, split)]
    assert [row.answer for row in data.retain.rows] == [r["answer"] for r in _records(tofu, retain)]
    assert (len(data.forget), len(data.retain)) == (rows, 4000 - rows)
    sizes = {name: len(row_set) for name, row_set in data.evaluation.items()}
    assert sizes == {"forget": rows, "retain": 400, "real_authors": 100, "world_facts": 117}
    assert {len(row.perturbed_answers) for row in data.evaluation["forget"].rows} == {5}
    assert {len(row.perturbed_answers) for row in data.evaluation["world_facts"].rows} == {3}
    assert all(row.paraphrased_question for row in data.evaluation["forget"].rows)


def test_twenty_authors_are_the_last_two_of_the_forget_split_and_the_first_eighteen_of_full(tofu: Path) -> None:
    data = _load(tofu, authors=20)

    full = [(record["question"], record["answer"]) for record in _records(tofu, "full")]
    assert [(row.question, row.answer) for row in data.forget.rows] == full[-40:]
    assert [(row.question, row.answer) for row in data.retain.rows] == full[:360]
    assert data.holdout is not None
    assert [(row.question, row.answer) for row in data.holdout.rows] == full[360:400]
    assert [row.question for row in data.evaluation["forget"].rows] == [question for question, _ in full[-40:]]
    assert [row.question for row in data.evaluation["retain"].rows] == [question for question, _ in full[:360]]


def test_general_knowledge_joins_the_retain_rows_if_configured(tofu: Path) -> None:
    data = _load(tofu, authors=20, train_on_general_knowledge=True)

    assert len(data.retain) == 360 + 100 + 117
    general = [*_records(tofu, "real_authors"), *_records(tofu, "world_facts")]
    assert [row.answer for row in data.retain.rows[360:]] == [record["answer"] for record in general]


@pytest.mark.slow
def test_the_content_hash_depends_on_the_rows_only(tofu: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tofu, copy)
    copy.chmod(0o755)
    assert _load(copy, authors=20).content_hash == _load(tofu, authors=20).content_hash

    changed = (copy / "forget10.json").read_text(encoding="utf-8").replace("Al-Kuwaiti is male", "Al-Kuwaiti is tall")
    (copy / "forget10.json").chmod(0o644)
    (copy / "forget10.json").write_text(changed, encoding="utf-8")
    assert _load(copy, authors=20).content_hash != _load(tofu, authors=20).content_hash


def test_a_hub_layout_is_read_by_the_datasets_library(tofu: Path, tmp_path: Path) -> None:
    shutil.copy(tofu / "forget01_perturbed.json", tmp_path / "rows.json")
    card = "---\nconfigs:\n- config_name: forget01_perturbed\n  data_files: rows.json\n---\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")

    assert hub_records(str(tmp_path), "forget01_perturbed") == _records(tofu, "forget01_perturbed")
    with pytest.raises(DataError, match=r"cannot be loaded, since the hub.*data\.path"):
        hub_records(str(tmp_path), "forget10")


def test_more_authors_than_the_split_has_is_an_error(tofu: Path) -> None:
    with pytest.raises(DataError, match=r"forget01 has 2: .*set data.split to forget10"):
        _load(tofu, split="forget01", authors=40)


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no TOFU directory .*nowhere"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no data file .*forget10\.json"):
        _load(tmp_path)
