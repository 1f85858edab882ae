"""Runs after runs: the four requests of MUSE-News, and what ``--after`` refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chain_case import measured, write_model
from ofmu.chain.rows import write_earlier
from ofmu.chain.run import EARLIER, chained_config, open_run
from ofmu.chain.run_record import read_run_chain
from ofmu.cli import unlearn as command
from ofmu.cli.main import main
from ofmu.data.load import load_data
from ofmu.errors import RunError
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles

NAMES = ("one", "two", "three", "four")
TEXT = 120
"""Characters of each text that are kept, so that a tiny model takes seconds."""


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    short = ({name: value[:TEXT] for name, value in each.items()} for each in found)
    path.write_text("".join(json.dumps(each) + "\n" for each in short), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A small MUSE-News whose retain texts of each request hold the forget texts of all other requests."""
    source = shared_data / "muse_news"
    if not (source / "sust").is_dir():
        pytest.skip("the benchmark data folder has no muse_news/sust")
    folder = tmp_path_factory.mktemp("runs")
    requests = [records(source / "sust" / f"forget_{number}.jsonl")[:2] for number in range(1, 5)]
    others = records(source / "privleak" / "retain.jsonl")[:3]
    for number, texts in enumerate(requests, start=1):
        write(folder / "data" / "sust" / f"forget_{number}.jsonl", texts)
        rest = [text for each in requests if each is not texts for text in each]
        write(folder / "data" / "raw" / f"retain{number}.jsonl", [*others, *rest])
    for part, count in (("knowmem/forget_qa", 2), ("knowmem/retain_qa", 2), ("verbmem/forget", 1)):
        write(folder / "data" / f"{part}.jsonl", records(source / f"{part}.jsonl")[:count])
    for part in ("knowmem/forget_qa_icl", "knowmem/retain_qa_icl", "privleak/forget", "privleak/holdout"):
        write(folder / "data" / f"{part}.jsonl", records(source / f"{part}.jsonl")[:1])
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    config = {
        "model": {"scratch": shape},
        "data": {"source": "muse", "path": "data", "max_length": 768},
        "engine": {"device": "cpu", "threads": 1},
        "training": {"epochs": 1},
        "reference": {"source": "none"},
        "method": {"name": "graddiff", "steps": 2, "batch_size": 2, "lr": 0.02},
    }
    (folder / "muse.yaml").write_text(yaml.safe_dump(config))
    return folder


def words(number: int, *more: str) -> list[str]:
    parts = [f"data.muse.forget=sust/forget_{number}", f"data.muse.retain=raw/retain{number}"]
    after = ["--after", NAMES[number - 2]] if number > 1 else []
    return ["unlearn", "muse.yaml", *parts, "--output", NAMES[number - 1], *after, *more]


def texts_of(path: Path) -> set[str]:
    return {each["text"] for each in records(path)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_four_requests_of_muse_news(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    assert main(words(1)) == 0
    assert read_run_chain("one") is None
    with monkeypatch.context() as patch:
        patch.setattr(command.StepPrinter, "__call__", _interrupt)
        with pytest.raises(SystemExit):
            main(words(2))
    assert (place / "two" / EARLIER).is_dir()  # the run had begun, and its config names these files
    with pytest.raises(RunError, match="two holds no complete run of ofmu unlearn"):
        open_run("two")
    for number in (2, 3, 4):
        assert main(words(number)) == 0
    said = capsys.readouterr().out
    assert "After 3 earlier runs, from the model" in said
    assert "Not retained: 6 rows that earlier runs forgot" in said
    assert "retain_knowledge_memorization: " in said
    assert "Earlier runs" in (place / "four" / "report.html").read_text()

    for number, name in enumerate(NAMES, start=1):
        config = UnlearnConfig.read(place / name / "config.yaml")
        retained = {row.answer for row in load_data(config.data, config.seed).retain.rows}
        assert config.model.path == (str(place / NAMES[number - 2] / "model") if number > 1 else None)
        for other in range(1, 5):
            texts = texts_of(place / "data" / "sust" / f"forget_{other}.jsonl")
            assert texts.isdisjoint(retained) if other <= number else texts <= retained

    stored = read_run_chain("four")
    assert stored is not None
    check_numbers(place, stored.model_dump(mode="json"))

    # The chain that was not measured is measured by the same command, with the same numbers.
    (place / "four" / "chain.json").unlink()
    with pytest.raises(RunError, match="four ended before its earlier runs were measured: run its command again"):
        open_run("four")
    assert main(words(4)) == 0
    assert read_run_chain("four") == stored
    check_refusals(place, capsys)


def check_numbers(place: Path, stored: dict[str, Any]) -> None:
    chain = stored["chain"]
    assert [each["id"] for each in chain["requests"]] == list(NAMES[:3])
    for number, request in enumerate(chain["requests"], start=1):
        forget, retain = (
            place / "data" / part for part in (f"sust/forget_{number}.jsonl", f"raw/retain{number}.jsonl")
        )
        models = [place / name / "model" for name in NAMES[number - 1 :]]
        expected = [measured(model, forget, retain, max_length=768)["forget_probability"] for model in models]
        metrics = {each["name"]: each for each in request["metrics"]}
        assert metrics["forget_probability"]["values"] == pytest.approx(expected, rel=1e-4)
        assert metrics["forget_probability"]["before"] is not None
        assert "forget_rouge" not in metrics  # the texts have no questions
    reports = [json.loads((place / name / "metrics.json").read_text())["metrics"] for name in NAMES]
    costs = [report["gradient_evaluations"] for report in reports]
    assert [each["gradient_evaluations"] for each in chain["requests"]] == costs[:3]
    assert chain["gradient_evaluations"] == sum(costs) > 0
    assert stored["first_target"] != str(place / "three" / "model")
    utility = {each["name"]: each for each in stored["utility"]}["retain_knowledge_memorization"]
    assert utility["result"] == reports[3]["retain_knowledge_memorization"]
    assert utility["target"] is not None
    assert utility["first_target"] is not None


def check_refusals(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A complete run that does not fit, or that was harmed, is one sentence."""
    shutil.copytree(place / "one", place / "harmed")
    metrics = place / "harmed" / "metrics.json"
    cases = (
        (words(2, "model.path=three/model"), "model.path names three/model, which is neither the model that"),
        (words(4, "--after", "one"), "holds the rows of other earlier runs than"),
        (["unlearn", "muse.yaml", "--output", "five", "--after", "data"], "holds no complete run of ofmu unlearn"),
    )
    for arguments, sentence in cases:
        refused(arguments, sentence, capsys)
    harmed = ["unlearn", "muse.yaml", "--output", "five", "--after", "harmed"]
    text = metrics.read_text()
    metrics.write_text(text.replace('"data_hash": "', '"data_hash": "0'))
    refused(harmed, "changed since its run", capsys)
    metrics.write_text("{")
    refused(harmed, "metrics.json is damaged", capsys)
    metrics.write_text(text)
    shutil.rmtree(place / "harmed" / "model")
    refused(harmed, "There is no model directory", capsys)


def refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("make", "more", "sentence"),
    [
        (lambda place: None, "", "There is no directory earlier"),
        (lambda place: write(place / "earlier" / "request.json", []), "", "use ofmu forget --after"),
        (lambda place: write_model(place / "earlier", 1.0), "", "holds no complete run of ofmu unlearn"),
    ],
)
def test_a_directory_that_is_no_run_is_refused(
    make: Any, more: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    refused(["unlearn", "--after", "earlier", "--output", "out", *more.split()], sentence, capsys)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny_mapping: dict[str, Any]) -> Path:
    """A folder with a config and its complete run, which follows no other run."""
    folder = tmp_path_factory.mktemp("single")
    method = {"name": "graddiff", "steps": 1, "batch_size": 4, "lr": 0.01}
    short = {"training": {"epochs": 1}, "reference": {"source": "none"}, "evaluation": {"max_new_tokens": 2}}
    (folder / "run.yaml").write_text(yaml.safe_dump({**tiny_mapping, **short, "method": method}))
    assert main(["unlearn", str(folder / "run.yaml"), "--output", str(folder / "one")]) == 0
    return folder


AFTER_ONE = ["unlearn", "run.yaml", "data.generated.forget_authors=1", "--after", "one", "--output"]


def test_a_refused_run_leaves_no_rows_of_the_runs_before_it(
    single: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(single)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused([*AFTER_ONE, "out", "engine.device=cuda"], "no GPU is visible", capsys)
    assert not Path("out").exists()
    # Another try may follow another run, and its own later checks leave nothing either.
    shutil.copytree("one", "held")
    refused([*AFTER_ONE, "held"], "held holds a run under another config", capsys)
    assert not Path("held", EARLIER).exists()


def test_rows_that_a_run_did_not_follow_are_not_part_of_its_chain(single: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(single)
    shutil.copytree("one", "stale")
    alone = open_run("stale")
    Path("stale", EARLIER).mkdir()
    write_earlier(Path("stale", EARLIER), open_run("one").earlier)
    assert open_run("stale").earlier == alone.earlier
    assert len(alone.earlier) == len(alone.known) + 1 == 1


def test_rows_that_a_user_names_stay_out_of_all_later_runs(single: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(single)
    data = load_data(UnlearnConfig.read("run.yaml").data, 0)
    given = data.retain.rows[0]
    write(single / "given.jsonl", [{"question": given.question, "answer": given.answer}])
    config = UnlearnConfig.read(
        "run.yaml", ["data.earlier=[given.jsonl]", "model.path=one/model", "model.is_target=true"]
    )
    shutil.copytree("one", "named")
    files = RunFiles(Path("named"))
    files.write_config(config.model_dump(mode="json"))
    report = files.read_report() or {}
    files.write_report(report | {"data_hash": load_data(config.data, config.seed).content_hash})
    with chained_config(UnlearnConfig.read("run.yaml"), open_run("named"), "after") as chained:
        assert chained.data.earlier[0] == "given.jsonl"
        assert len(chained.data.earlier) == 2
        assert given not in load_data(chained.data, chained.seed).retain.rows


def _interrupt(printer: command.StepPrinter, record: dict[str, Any]) -> None:
    raise KeyboardInterrupt
