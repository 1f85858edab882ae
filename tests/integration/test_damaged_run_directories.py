"""Run directories whose files are damaged, edited, emptied, or links: one sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.storage.mirror import Mirror
from ofmu.cli.main import main
from ofmu.errors import OfmuError, RunError, StorageError
from ofmu.run_files import RunFiles
from tune import AskTell, SearchResult

METRICS = {"ks_statistic": 0.5, "model_utility": 0.5, "extraction_strength": 0.5}
Change = Callable[[Path], object]


def told(search: AskTell, count: int) -> None:
    """Finish trials of a search, with a model each."""
    for _ in range(count):
        trial = search.ask()
        assert trial is not None
        (trial.directory / "model").mkdir(parents=True)
        (trial.directory / "model" / "config.json").write_text("{}")
        search.tell(trial, METRICS | {"ks_statistic": 0.5 - 0.1 * trial.number})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of six trials, of which four are complete and one is interrupted."""
    path = tmp_path_factory.mktemp("original") / "run"
    config = {"search": {"num_trials": 6, "keep_models": "all"}, "seed": 5}
    with AskTell(config, run_dir=path) as search:
        told(search, 4)
        search.ask()
        search.result()
    (path / "reference.json").write_text(json.dumps({"ks_statistic": 0.0}))
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run")


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def edited(name: str, change: Callable[[Any], object], load: Any = json.loads, dump: Any = json.dumps) -> Change:
    def apply(run: Path) -> None:
        stored = load((run / name).read_text())
        change(stored)
        (run / name).write_text(dump(stored))

    return apply


def config(change: Callable[[Any], object]) -> Change:
    return edited("config.yaml", change, yaml.safe_load, partial(yaml.safe_dump, sort_keys=False))


def text(name: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda run: (run / name).write_bytes(data)


def entries(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change every entry of the study."""

    def apply(run: Path) -> None:
        lines = [json.loads(line) for line in (run / "study.log").read_text().splitlines()]
        for entry in lines:
            change(entry)
        (run / "study.log").write_text("".join(json.dumps(entry) + "\n" for entry in lines))

    return apply


def attribute(name: str, value: Any) -> Change:
    def change(entry: dict[str, Any]) -> None:
        if name in entry.get("user_attr", {}):
            entry["user_attr"][name] = value

    return entries(change)


def database(run: Path) -> None:
    (run / "study.log").unlink()
    with sqlite3.connect(run / "study.log") as other:
        other.execute("create table mine (a)")


def half(run: Path) -> None:
    data = (run / "study.log").read_bytes()
    (run / "study.log").write_bytes(data[: len(data) // 2])


STUDY: dict[str, Change] = {
    "a database": database,
    "random bytes": text("study.log", os.urandom(3000)),
    "a JSON text": text("study.log", '{"a": 1}\n' * 20),
    "a list": text("study.log", "[1]\n" * 20),
    "a study of another name": text("study.log", '{"op_code": 0, "worker_id": "a"}\n'),
    "an unknown operation": entries(lambda entry: entry.update(op_code=99)),
    "an operation that is text": entries(lambda entry: entry.update(op_code="x")),
    "values that are text": entries(lambda entry: "values" in entry and entry.update(values="bad")),
    "values that are too few": entries(lambda entry: entry.get("values") and entry.update(values=[0.5])),
    "a state that is none": entries(lambda entry: "state" in entry and entry.update(state=12)),
    "metrics that are a list": attribute("metrics", [1]),
    "a metric that is a list": attribute("metrics", {"ks_statistic": [1]}),
    "overrides that are text": attribute("overrides", "x"),
    "a role that is a number": attribute("role", 3),
}
CONFIG: dict[str, Change] = {
    "cut": lambda run: text("config.yaml", (run / "config.yaml").read_text()[:150])(run),
    "empty": text("config.yaml", ""),
    "binary": text("config.yaml", os.urandom(500)),
    "a list": text("config.yaml", "- 1\n"),
    "a section that is text": config(lambda stored: stored.update(search="x")),
    "without its data": config(lambda stored: stored["data"]["generated"].update(authors=7)),
    "another seed": config(lambda stored: stored.update(seed=6)),
    "other objectives": config(
        lambda stored: stored["search"].update(objectives={"model_utility": "max", "extraction_strength": "min"})
    ),
    "the other direction": config(
        lambda stored: stored["search"].update(objectives={"ks_statistic": "max", "model_utility": "max"})
    ),
    "another space": config(lambda stored: stored["search"]["space"].pop("method.outer_lr_scale")),
    "another range": config(lambda stored: stored["search"]["space"]["method.inner_lr_scale"].update(high=9.0)),
    "another method": config(lambda stored: stored.update(method={"name": "npo"}) or stored["search"].pop("space")),
    "another number of baselines": config(lambda stored: stored["search"].update(baselines=["target"])),
}
RECORDS: dict[str, Change] = {
    "search.json cut": text("search.json", '{"complete": 4,'),
    "search.json binary": text("search.json", os.urandom(200)),
    "search.json without a key": edited("search.json", lambda stored: stored.pop("seconds")),
    "search.json is a list": text("search.json", "[]"),
    "search.json with text as seconds": edited("search.json", lambda stored: stored.update(seconds="x")),
    "reference.json cut": text("reference.json", '{"ks_stat'),
    "reference.json binary": text("reference.json", b"\xff\xfe\x00"),
    "reference.json is a list": text("reference.json", "[1, 2]"),
    "reference.json with text": text("reference.json", '{"ks_statistic": "low"}'),
    "reference.json nested": text("reference.json", "[" * 100_000),
    "warm_start.json cut": text("warm_start.json", '{"prior": ['),
    "warm_start.json without a key": text("warm_start.json", '{"prior": [{}]}'),
    "environment.json cut": text("environment.json", '{"python": '),
}


def commands(run: Path) -> Iterator[list[str]]:
    yield ["report", str(run)]
    yield ["export", str(run), "--pick", "0", "--output", str(run.parent / "taken")]
    yield ["search", "--resume", str(run)]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDY)
def test_a_damaged_study_is_one_sentence(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    STUDY[name](run)
    refused(run, capsys, "study.log")


@pytest.mark.parametrize("name", CONFIG)
def test_a_damaged_or_edited_config_is_one_sentence(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    CONFIG[name](run)
    refused(run, capsys, "section" if name == "a section that is text" else "config")


def refused(run: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    """Check that every command names the file in one sentence, and writes nothing."""
    before = content_of(run)
    for arguments in commands(run):
        assert main(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("Error: "), error
        assert error.count("\n") == 1, error
        assert word in error.lower()
        assert content_of(run) == before
    assert not (run.parent / "taken").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_one_sentence_or_not_needed(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    RECORDS[name](run)
    if name.startswith("reference.json"):
        # A resume without preparation does not need the reference.
        with pytest.raises(OfmuError, match=name.split()[0]):
            SearchResult.load(run).reference()
    else:
        with pytest.raises(OfmuError, match=name.split()[0]):
            AskTell.resume(run)
    drawn = {"front.png", "report.html"}
    before = {name: data for name, data in content_of(run).items() if name not in drawn}
    for arguments in list(commands(run))[:2]:
        status = main(arguments)
        error = capsys.readouterr().err
        assert status == 0 or (error.startswith("Error: ") and error.count("\n") == 1), error
        assert {name: data for name, data in content_of(run).items() if name not in drawn} == before


@pytest.mark.parametrize("lost", ["emptied", "deleted", "cut", "of other trials"])
def test_a_study_that_lost_trials_is_not_started_over(run: Path, lost: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "study.log"
    if lost == "deleted":
        path.unlink()
    elif lost == "emptied":
        path.write_bytes(b"")
    elif lost == "of other trials":
        entries(lambda entry: "trial_id" in entry and entry.update(trial_id=77))(run)
    else:
        half(run)
    before = content_of(run)
    assert main(["search", "--resume", str(run)]) == 1
    error = capsys.readouterr().err
    assert "study.log lacks trial" in error
    assert error.count("\n") == 1
    with pytest.raises(RunError, match=r"study.log lacks trial"):
        AskTell.resume(run)
    if lost == "deleted":
        # A report has nothing to show, and the advice to continue the search would be wrong.
        with pytest.raises(RunError, match=r"study.log lacks trial"):
            SearchResult.load(run)
    assert content_of(run) == before


@pytest.mark.slow
def test_what_a_resume_may_change_is_no_edit(run: Path) -> None:
    config(lambda stored: stored["search"].update(num_trials=7, keep_models="front", max_concurrent_trials=1))(run)
    config(lambda stored: stored.update(cluster={"num_workers": 2}, cache_dir=str(run.parent)))(run)
    assert len(SearchResult.load(run).front) == 1
    with AskTell.resume(run) as search:
        told(search, 3)
        assert search.ask() is None
    AskTell.resume(run).close()


def test_a_search_of_an_older_version_has_no_config_in_its_study(run: Path) -> None:
    lines = (run / "study.log").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "ofmu:config" not in json.loads(line).get("system_attr", {})]
    assert len(kept) == len(lines) - 1
    (run / "study.log").write_text("".join(kept))
    assert len(SearchResult.load(run).front) == 1
    config(lambda stored: stored["search"].update(objectives={"model_utility": "max", "ks_statistic": "min"}))(run)
    with pytest.raises(RunError, match=r"search\.objectives changed"):
        SearchResult.load(run)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that a run directory links to."""
    folder = tmp_path / "outside"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text("mine")
    (folder / "metrics.json").write_text(json.dumps({"metrics": METRICS}))
    (folder / "file").write_text("mine")
    return folder


def link(run: Path, name: str, target: Path) -> None:
    place = run / name
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(target)


@pytest.mark.parametrize(
    "name", ["trials", "trials/00001", "front.png", "study.log", "config.yaml", "trials.csv", ".lock", "search.json"]
)
def test_a_link_in_a_run_directory_is_not_followed(
    run: Path, outside: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = outside if name.startswith("trials") and "." not in name else outside / "file"
    if name == "trials":
        target = shutil.move(run / "trials", outside / "trials")
    link(run, name, Path(target))
    mine, before = content_of(outside), content_of(run)
    for arguments in commands(run):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert f"{run / name} is a link to {target}" in error
        assert error.count("\n") == 1
    with pytest.raises(RunError, match="is a link to"):
        AskTell.resume(run)
    assert content_of(outside) == mine
    assert content_of(run) == before
    assert not (run.parent / "taken").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "model/config.json", "metrics.json", "config.yaml"])
def test_an_export_copies_nothing_from_outside(
    run: Path, outside: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    link(run / "trials" / "00000", name, outside / ("model" if name == "model" else "file"))
    assert main(["export", str(run), "--pick", "0", "--output", str(run.parent / "taken")]) == 1
    assert f"trials/00000/{name} is a link to {outside}" in capsys.readouterr().err
    assert not (run.parent / "taken").exists()
    assert main(["report", str(run)]) == 0, "a report does not read these files"


def test_an_interrupted_trial_takes_no_result_from_outside(run: Path, outside: Path) -> None:
    (run / "trials" / "00004").mkdir()
    link(run / "trials" / "00004", "metrics.json", outside / "metrics.json")
    with pytest.raises(RunError, match=r"trials/00004/metrics.json is a link"):
        AskTell.resume(run)


def test_models_outside_are_not_deleted(run: Path, outside: Path) -> None:
    link(run / "trials" / "00001", "model", outside / "model")
    config(lambda stored: stored["search"].update(keep_models="none"))(run)
    AskTell.resume(run).close()
    assert (outside / "model" / "weights").read_text() == "mine"
    assert not (run / "trials" / "00000" / "model").exists()


def test_a_picture_replaces_no_file_elsewhere(run: Path, outside: Path) -> None:
    """Earlier versions drew into a file of this name."""
    (run / "front.partial.png").symlink_to(outside / "file")
    with pytest.raises(RunError, match="is a link"):
        SearchResult.load(run)
    (run / "front.partial.png").unlink()
    (run / f".front.png.{os.getpid()}.tmp").symlink_to(outside / "file")
    with pytest.raises(RunError, match="is a link"):
        SearchResult.load(run)
    assert (outside / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_run_directory_may_itself_be_a_link(run: Path) -> None:
    (run.parent / "alias").symlink_to(run)
    assert main(["report", str(run.parent / "alias")]) == 0


@pytest.mark.parametrize("name", ["metrics.json", "model", "checkpoints", "history.jsonl"])
def test_a_single_run_writes_nothing_outside(
    outside: Path, tmp_path: Path, tiny_mapping: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_mapping))
    work = tmp_path / "work"
    work.mkdir()
    (work / "environment.json").write_text(json.dumps({"python": "", "platform": "", "host": "", "versions": {}}))
    (work / name).symlink_to(outside / ("file" if "." in name else "model"))
    mine = content_of(outside)
    assert main(["unlearn", str(tmp_path / "tiny.yaml"), "--output", str(work)]) == 1
    assert f"{work / name} is a link to {outside}" in capsys.readouterr().err
    assert content_of(outside) == mine


def test_names_at_a_uri_do_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "remote" / "config.yaml").symlink_to(tmp_path / "secret")
    mirror = Mirror(f"file://{tmp_path}/remote", tmp_path / "local")
    with pytest.raises(StorageError, match=r"config.yaml, which leads out of it"):
        mirror.pull(mirror.files())
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": 3}', '{"a": 1}'])
def test_damaged_metrics_of_a_run_are_one_sentence(tmp_path: Path, content: str) -> None:
    files = RunFiles(tmp_path)
    assert files.read_metrics() is None
    files.metrics.write_text(content)
    with pytest.raises(RunError, match=r"metrics.json is damaged .*: restore it from a copy, or delete it"):
        files.read_metrics()
