"""A relative path depends on the current directory, so the sentence for a missing file gives the full path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofmu.cli.main import main
from ofmu.config.files import read_mapping
from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.files import read_rows
from ofmu.data.load import load_data
from ofmu.errors import OfmuError
from ofmu.io.files import looked_for
from ofmu.models.files import check_model_directory
from ofmu.tasks.reference_path import reference_scores_file
from ofmu.vision.sources import read_cifar, read_folder
from tune.run_list import list_runs
from tune.rundir.kind import kind_of
from tune.rundir.search_dir import RunDirectory


def data(source: str, path: str) -> DataConfig:
    return DataConfig.model_validate({"source": source, "path": path})


READERS: list[tuple[str, Callable[[str], Any]]] = [
    ("gone.jsonl", lambda name: read_rows(name, ColumnsConfig())),
    ("gone.yaml", read_mapping),
    ("gone.json", reference_scores_file),
    ("./gone", check_model_directory),
    ("here/../gone/tofu", lambda name: load_data(data("tofu", name), 0)),
    ("./gone", lambda name: read_cifar(data("cifar10", name))),
    ("gone", lambda name: read_folder(data("images", name), 0)),
    ("gone", kind_of),
    ("gone", RunDirectory.open_existing),
    ("gone", list_runs),
]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_the_sentence_gives_the_full_path_of_a_relative_name(
    name: str, read: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OfmuError) as caught:
        read(name)
    assert f" {name} (looked for at {tmp_path / name})" in str(caught.value)
    with pytest.raises(OfmuError) as caught:
        read(str(tmp_path / name))
    assert str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("there", "given", "near"),
    [
        ("mine.yaml", "mine.yml", "mine.yaml"),
        ("forget.jsonl", "forgett.jsonl", "forget.jsonl"),
        ("data/forget.jsonl", "dta/forget.jsonl", "data/forget.jsonl"),
        ("data/forget.jsonl", "dta/other.jsonl", "data"),
        ("runs/tofu/config.yaml", "runs/tof", "runs/tofu"),
        ("forget.jsonl", "retain.jsonl", None),
        (".mine.yaml", "mine.yml", None),
        ("mine.yaml", "mine.yaml", None),
    ],
)
def test_a_file_of_nearly_the_same_name_is_offered(
    there: str, given: str, near: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("")
    monkeypatch.chdir(tmp_path)
    hint = "" if near is None else f"; did you mean '{near}'?"
    assert looked_for(given) == f"{given} (looked for at {tmp_path / given}{hint})"
    hint = "" if near is None else f" (did you mean '{tmp_path / near}'?)"
    assert looked_for(tmp_path / given) == f"{tmp_path / given}{hint}"


def test_commands_offer_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tofu1").mkdir()
    for name in ("mine.yaml", "rows.jsonl"):
        (tmp_path / name).write_text("")
    for words, near in (
        (["unlearn", "mine.yml", "--output", "out"], "mine.yaml"),
        (["export", "tofu", "--output", "out"], "tofu1"),
        (["forget", "org/model", "--rows", "row.jsonl", "--output", "out"], "rows.jsonl"),
    ):
        assert main(words) != 0
        error = capsys.readouterr().err
        assert f"did you mean '{near}'?" in error, error
        assert "Traceback" not in error
