"""A run directory is of its content: rows, models, reference and modules that change after the start are named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli import unlearn as command
from ofmu.cli.main import main
from ofmu.config.files import validate
from ofmu.content import content_of
from ofmu.io.cache import model_hashes
from ofmu.io.plugins import plugin_hash
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from tune.compare.comparison import Comparison
from tune.compare.directory import CompareDirectory
from tune.config import SearchConfig
from tune.rundir.search_dir import RunDirectory

pytestmark = pytest.mark.timeout(120)

ROWS = [{"question": f"Who wrote book {number}?", "answer": f"Author {number} did."} for number in range(12)]
MODULE = """
import helper_of_mine
def twice(scores, reference):
    return helper_of_mine.FACTOR
"""


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def project(tmp_path: Path, tiny_mapping: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows, a target, a reference and a metric of the user, and a config that names all of them."""
    write_rows(tmp_path / "forget.jsonl", ROWS[:4])
    write_rows(tmp_path / "retain.jsonl", ROWS[8:])
    (tmp_path / "metric_of_mine.py").write_text(MODULE)
    (tmp_path / "helper_of_mine.py").write_text("FACTOR = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("metric_of_mine", "helper_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    files = {"source": "files", "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")}
    mapping = {**tiny_mapping, "data": {**files, "max_length": 96}}
    prepared = prepare(UnlearnConfig.model_validate(mapping))
    shutil.copytree(prepared.target, tmp_path / "target")
    assert prepared.reference_scores is not None
    shutil.copy2(prepared.reference_scores, tmp_path / "reference.json")
    mapping["model"] = {"path": str(tmp_path / "target"), "is_target": True}
    mapping["reference"] = {"source": "scores", "path": str(tmp_path / "reference.json")}
    mapping["evaluation"] = {**tiny_mapping["evaluation"], "custom_metrics": ["metric_of_mine:twice"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mapping))
    return tmp_path


def more_rows(project: Path) -> None:
    write_rows(project / "forget.jsonl", ROWS[:8])


def other_model(project: Path) -> None:
    path = project / "target" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_length": 21}))


def other_reference(project: Path) -> None:
    path = project / "reference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "another"}))


def other_metric(project: Path) -> None:
    (project / "metric_of_mine.py").write_text(MODULE + "# changed\n")


def other_helper(project: Path) -> None:
    (project / "helper_of_mine.py").write_text("FACTOR = 3.0\n")


CHANGES: dict[str, Callable[[Path], None]] = {
    "the rows": more_rows,
    "the model at model.path": other_model,
    "the reference at reference.path": other_reference,
    "the code of metric_of_mine": other_metric,
    "the code of metric_of_mine ": other_helper,
}


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.slow
def test_a_finished_run_is_not_the_answer_for_other_content(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["unlearn", project / "mine.yaml", "--output", project / "run"]
    assert run(*arguments) == 0
    before = (project / "run" / "metrics.json").read_bytes()
    assert run(*arguments) == 0, "the same content is no difference"
    for part, change in CHANGES.items():
        kept = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
        change(project)
        capsys.readouterr()
        assert run(*arguments) == 1
        errors = capsys.readouterr().err
        assert f"{project / 'run'} holds a run on other content, since {part.strip()} changed after its start" in errors
        assert "Traceback" not in errors
        for path, content in kept.items():
            path.write_bytes(content)
    assert run(*arguments) == 0
    assert (project / "run" / "metrics.json").read_bytes() == before

    (project / "run" / "content.json").unlink()  # as an older version left it
    assert run(*arguments) == 0
    more_rows(project)
    assert run(*arguments) == 1


@pytest.mark.slow
def test_an_interrupted_run_does_not_continue_on_other_rows(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(printer: command.StepPrinter, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    arguments = ["unlearn", project / "mine.yaml", "--output", project / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(command.StepPrinter, "__call__", interrupt)
        with pytest.raises(SystemExit):
            run(*arguments)
    more_rows(project)
    assert run(*arguments) == 1
    assert "since the rows changed after its start" in capsys.readouterr().err

    write_rows(project / "forget.jsonl", ROWS[:4])
    hashed: list[Path] = []

    def counting(directory: Path) -> dict[str, str]:
        hashed.append(directory)
        return model_hashes(directory)

    monkeypatch.setattr("ofmu.content.model_hashes", counting)
    assert run(*arguments) == 0
    assert hashed == [project / "target"], "a resume reads the model for its content once"


def test_a_search_and_a_comparison_do_not_continue_on_other_content(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = yaml.safe_load((project / "mine.yaml").read_text()) | {"search": {"num_trials": 3}}
    config = validate(SearchConfig, mapping)
    search = RunDirectory.create_new(project / "search")
    search.mkdir()
    search.write_config(config)
    search.write_content(config.unlearn)
    made = Comparison(mapping, ["ofmu", "npo"], run_dir=project / "compare")
    comparison = CompareDirectory(project / "compare")
    comparison.mkdir()
    comparison.write_mapping(made.mapping, replace_environment=True)
    comparison.write_content(config.unlearn)
    search.check_content(config.unlearn)
    comparison.check_content(config.unlearn)

    more_rows(project)
    other_helper(project)
    for kind, name in (("search", "search"), ("comparison", "compare")):
        assert run(name, "--resume", project / name, "--allow-code") == 1
        sentence = f"{project / name} holds a {kind} on other content, since the rows and the code of metric_of_mine"
        assert sentence in capsys.readouterr().err
    search.write_content(config.unlearn)
    assert run("search", "--resume", project / "search", "--allow-code") == 1, "what is stored at the start stays"


def test_a_package_counts_with_all_that_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "package_of_mine"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__", "inner/__init__", "inner/used", "unused"):
        (package / f"{name}.py").write_text("")
    (package / "main.py").write_text("import json\nfrom .inner import used\n")
    hashes = [plugin_hash("package_of_mine.main", "method.module")]
    for name in ("inner/used", "__init__", "main"):
        path = package / f"{name}.py"
        path.write_text(path.read_text() + "X = 1\n")
        hashes.append(plugin_hash("package_of_mine.main", "method.module"))
    assert len(set(hashes)) == 4
    (package / "unused.py").write_text("X = 1\n")
    assert plugin_hash("package_of_mine.main", "method.module") == hashes[-1]


def test_content_of_a_hub_model_that_was_never_downloaded_leaves_the_model_out(tiny_config: UnlearnConfig) -> None:
    config = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update={"path": "org/none"})})
    assert content_of(config).keys() == {"the rows"}
