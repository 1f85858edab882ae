"""Which rows a model is known to have forgotten, from the files beside it. Nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofmu.chain.run_of_model import forgotten_before
from ofmu.errors import RunError
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from ofmu.tasks.load import task_family


def write_rows(path: Path, *questions: str) -> str:
    path.write_text("".join(json.dumps({"question": each, "answer": "Yes."}) + "\n" for each in questions))
    return str(path)


def write_run(folder: Path, files: RunFiles, forget: str, **model: object) -> None:
    """Write what a run that forgot one row leaves beside its model."""
    data = {
        "source": "files",
        "forget": write_rows(folder / f"{forget}.jsonl", forget),
        "retain": write_rows(folder / "retain.jsonl", "kept"),
    }
    config = UnlearnConfig.model_validate({"data": data, "model": model})
    files.write_config(config.model_dump(mode="json"))
    write_json(files.metrics, {"metrics": {}, "data_hash": task_family("language").load_data(config).content_hash})


def questions(model: Path) -> list[str] | None:
    found = forgotten_before(model)
    return None if found is None else [row.question for row in found.forget]


def test_an_exported_model_and_those_before_it_are_known(tmp_path: Path):
    run = RunFiles(tmp_path / "run")
    run.model.mkdir(parents=True)
    write_json(run.environment, environment())
    write_run(tmp_path, run, "first")
    assert questions(run.model) == ["first"]

    exported = tmp_path / "exported"
    exported.mkdir()
    write_run(tmp_path, RunFiles(exported), "second", path=str(run.model), is_target=True)
    assert questions(exported) == ["first", "second"]

    write_rows(tmp_path / "second.jsonl", "another")
    with pytest.raises(RunError, match=r"they changed since the run: restore .*config\.yaml names, or move .*metrics"):
        forgotten_before(exported)


def test_files_of_other_programs_beside_a_model_are_no_run(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("base_model: mine\n")
    assert questions(tmp_path) is None
    for other in ({"accuracy": 1.0}, [1]):
        write_json(tmp_path / "metrics.json", other)  # type: ignore[arg-type]
        assert questions(tmp_path) is None
