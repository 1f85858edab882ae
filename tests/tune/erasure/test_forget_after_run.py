"""Requests on the model of ``ofmu unlearn``: the rows that its run forgot are not trained back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from erasure_case import SETTINGS, trials_in_this_process, write_case
from ofmu.cli.main import main
from ofmu.erasure.chain import forgotten_before_chain
from ofmu.erasure.verify import read_intact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    trials_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the run ``one`` that made it forget an author, and the files for later requests."""
    folder = write_case(tmp_path_factory.mktemp("after-run"))
    forgotten = lines_of(folder / "rows.jsonl")
    others = [line for line in lines_of(folder / "corpus.jsonl") if line not in forgotten]
    for name, lines in {"next": others[:1], "third": others[1:2], "others": others}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "model": {"path": str(folder / "model"), "is_target": True},
        "data": {"source": "files", "max_length": 64}
        | {"forget": str(folder / "rows.jsonl"), "retain": str(folder / "others.jsonl")},
        "engine": {"device": "cpu", "threads": 1},
        "evaluation": {"max_new_tokens": 4},
        "reference": {"source": "none"},
        "method": {"name": "graddiff", "steps": 2, "batch_size": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["unlearn", str(folder / "run.yaml"), "--output", str(folder / "one")]) == 0
    return folder


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def rows_of(path: Path) -> set[str]:
    return {json.loads(line)["question"] for line in lines_of(path)}


def words(model: str, rows: str, output: str, *more: str) -> list[str]:
    given = ["forget", model, "--rows", rows, "--corpus", "corpus.jsonl", "--output", output, "--trials", "3"]
    return [*given, "--confirm", "0", "--min-utility", "0", *more, *SETTINGS]


def test_rows_that_a_run_forgot_are_retained_by_no_later_request(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    forgotten = rows_of(place / "rows.jsonl")
    assert main(words("one/model", "next.jsonl", "first")) == 0
    said = " ".join(capsys.readouterr().out.split())
    sentence = f"earlier runs forgot {len(forgotten)} rows, and no such row is retained"
    assert f"MODEL is that of one, which with what ran before it forgot {len(forgotten)} rows" in said
    assert sentence in said
    assert rows_of(place / "first" / "rows" / "retain.jsonl").isdisjoint(forgotten)
    assert any(sentence in note for note in read_intact(place / "first" / "evidence").request.notes)

    # A model that was exported from a search, and the result of a request without --after, are known as well.
    assert (
        main(
            [
                "export",
                "first/search",
                "--pick",
                str(read_intact(place / "first" / "evidence").search.chosen_trial),
                "--output",
                "exported",
            ]
        )
        == 0
    )
    for model in ("exported", "first/model"):
        known = {row.question for each in forgotten_before_chain(model) for row in each.forget}
        assert known == forgotten | rows_of(place / "next.jsonl")
    assert forgotten_before_chain("model") == ()

    # The next request knows them too, and measures again only what a request forgot.
    assert main(words("first/model", "third.jsonl", "second", "--after", "first", "--request-id", "second")) == 0
    assert rows_of(place / "second" / "rows" / "retain.jsonl").isdisjoint(forgotten | rows_of(place / "next.jsonl"))
    record = read_intact(place / "second" / "evidence")
    assert any(sentence in note for note in record.request.notes)
    assert record.chain is not None
    assert len(record.chain.requests) == 1


@pytest.mark.parametrize(
    ("change", "more", "error"),
    [
        (None, ("--holdout", "rows.jsonl"), "is also in the earlier forget set"),
        ("cut", (), "they changed since the run: restore the files that"),
        ("gone", (), "they cannot be read (There is no"),
    ],
)
def test_what_would_bring_the_rows_of_a_run_back_is_refused(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str | None,
    more: tuple[str, ...],
    error: str,
):
    monkeypatch.chdir(place)
    rows = place / "rows.jsonl"
    text = rows.read_text(encoding="utf-8")
    if change == "cut":
        rows.write_text("\n".join(text.splitlines()[1:]) + "\n", encoding="utf-8")
    elif change == "gone":
        rows.unlink()
    try:
        assert main(words("one/model", "next.jsonl", str(tmp_path / "refused"), *more)) == 1
    finally:
        rows.write_text(text, encoding="utf-8")
    assert error in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "refused" / "request.json").exists()
