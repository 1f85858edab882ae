"""A relative path depends on the current directory, so the sentence for a missing file gives the full path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofmu.config.files import read_mapping
from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.files import read_rows
from ofmu.data.load import load_data
from ofmu.errors import OfmuError
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
