"""No command replaces or deletes what it did not make: it ends with one sentence, and every file stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from ofmu.errors import RunError
from ofmu.preparer import prepare
from ofmu.run_files import RUN_NAMES, check_output, made_by_ofmu
from ofmu.trainer import unlearn
from tune.ask_tell import AskTell
from tune.compare.directory import CompareDirectory
from tune.rundir.search_dir import RunDirectory

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def tiny(tmp_path: Path, tiny_mapping: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_mapping))
    return path


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    return sentence


def put(folder: Path, name: str) -> None:
    """Put a user's file at ``name``, or a folder with a file if the name has no suffix."""
    place = folder / name if Path(name).suffix else folder / name / "mine.txt"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")


@pytest.mark.slow
def test_the_users_model_in_the_output_is_not_replaced(tiny, tiny_config, tmp_path, capsys):
    prepared, model = prepare(tiny_config), tmp_path / "work" / "model"
    model.parent.mkdir()
    for source in (prepared.target, None):
        model.mkdir(exist_ok=True)
        if source is not None:
            for path in source.iterdir():
                (model / path.name).write_bytes(path.read_bytes())
        (model / "README.md").write_text("mine")
    before = content_of(tmp_path / "work")
    target = [f"model.path={model}", "model.is_target=true", "reference.source=none"]
    sentence = refused(capsys, "unlearn", tiny, *target, "--output", tmp_path / "work")
    assert f"{tmp_path / 'work'} holds model, which ofmu did not make" in sentence
    with pytest.raises(RunError, match="holds model"):
        unlearn(tiny_config, tmp_path / "work")
    assert content_of(tmp_path / "work") == before


@pytest.mark.parametrize("name", RUN_NAMES)
def test_a_run_replaces_no_file_of_the_user(tiny, tmp_path, capsys, name):
    put(tmp_path / "work", name)
    before = content_of(tmp_path / "work")
    assert f"holds {name}" in refused(capsys, "unlearn", tiny, "--output", tmp_path / "work")
    assert content_of(tmp_path / "work") == before


def test_other_files_of_the_user_may_lie_beside_a_run(tmp_path):
    put(tmp_path, "notes.txt")
    (tmp_path / "model").mkdir()
    check_output(tmp_path)


def test_a_file_of_the_users_with_our_name_is_no_proof(tmp_path):
    for content in ("{}", "[]", "mine", '{"python": "3.11", "versions": {}}'):
        (tmp_path / "environment.json").write_text(content)
        assert not made_by_ofmu(tmp_path)
        with pytest.raises(RunError, match=r"holds environment\.json"):
            check_output(tmp_path)


@pytest.mark.parametrize(
    "name", ["trials", "study.log", "trials.csv", "front.png", "search.json", "ray", "config.yaml"]
)
def test_a_search_replaces_no_file_of_the_user(tiny, tmp_path, capsys, name):
    put(tmp_path / "work", name)
    assert f"holds {name}" in refused(capsys, "search", tiny, "--run-dir", tmp_path / "work")
    assert list(content_of(tmp_path / "work").values()) == [b"mine"]


@pytest.mark.parametrize("name", ["searches", "runs", "compare.csv", "compare.md", "ray", "environment.json"])
def test_a_comparison_replaces_no_file_of_the_user(tmp_path, name):
    put(tmp_path, name)
    with pytest.raises(RunError, match=f"holds {name}"):
        CompareDirectory.create_new(tmp_path)


def test_a_users_project_is_not_the_directory_of_a_search(tiny, tmp_path, capsys):
    work = tmp_path / "work"
    put(work, "trials")
    (work / "config.yaml").write_text(tiny.read_text())
    before = content_of(work)
    for arguments in (["search", "--resume", work], ["report", work]):
        assert "is not the directory of a search" in refused(capsys, *arguments)
    assert content_of(work) == before


def test_a_search_that_stopped_before_its_config_is_started_again(tmp_path):
    run = RunDirectory.create_new(tmp_path / "run")
    run.mkdir()
    assert RunDirectory.create_new(tmp_path / "run") == run


@pytest.mark.slow
def test_an_export_leaves_the_folder_beside_it(tiny_config, tmp_path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "mine.txt").write_text("mine")
    objectives = {"extraction_strength": "min", "model_utility": "max"}
    with AskTell(tiny_config, objectives, 1, tmp_path / "run") as search:
        trial = search.ask()
        assert trial is not None
        (trial.directory / "model").mkdir(parents=True)
        (trial.directory / "model" / "weights").write_text("w")
        search.tell(trial, {"extraction_strength": 0.5, "model_utility": 0.5})
        search.result().knee.export(tmp_path / "new" / "model")
        search.result().knee.export(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "w"
    assert (tmp_path / "model.partial" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.partial", "new", "run"]


@pytest.mark.slow
def test_an_evaluation_replaces_only_an_earlier_evaluation(tiny, tiny_config, tmp_path, capsys):
    prepared, output = prepare(tiny_config), tmp_path / "scores"
    command = ["evaluate", prepared.target, tiny, "--output"]
    for _ in range(2):
        assert main([str(word) for word in [*command, output]]) == 0
    (output / "metrics.json").unlink()  # as after a kill between the two writes
    assert main([str(word) for word in [*command, output]]) == 0

    for name in ("metrics.json", "scores.json"):
        for text in ("mine", json.dumps({"metrics": {}})):
            put(tmp_path / text[:4] / name, name)
            (tmp_path / text[:4] / name / name).write_text(text)
            assert f"holds {name}" in refused(capsys, *command, tmp_path / text[:4] / name)
            assert (tmp_path / text[:4] / name / name).read_text() == text

    assert main(["unlearn", str(tiny), "method.outer_steps=0", "--output", str(tmp_path / "run")]) == 0
    before = content_of(tmp_path / "run")
    assert "holds a run or a search" in refused(capsys, *command, tmp_path / "run")
    assert content_of(tmp_path / "run") == before
    assert main(["unlearn", str(tiny), "method.outer_steps=0", "--output", str(tmp_path / "run")]) == 0
