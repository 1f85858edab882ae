from __future__ import annotations

from pathlib import Path

import pytest

from ofmu.data.rows import Row, RowSet
from ofmu.erasure.request_rows import RequestRows, ReviewedRow
from ofmu.erasure.workspace import Workspace
from ofmu.errors import RunError

ROWS = (
    Row(
        question="Where?",
        answer="Here.\u2028There",
        paraphrased_answer="At this place.",
        perturbed_answers=("No", "There"),
    ),
    Row(question="", answer='A text with "quotes"\nand lines.'),
    Row(question="Q", answer="A", translated_question="P", translated_answer="R", translated_perturbed_answers=("S",)),
)


def request_rows(**more: object) -> RequestRows:
    given = {
        "forget": RowSet("forget", ROWS),
        "retain": RowSet("retain", (Row(question="Other?", answer="Yes."),)),
        "holdout": None,
        "origins": {"forget": "given", "retain": "given"},
        "retain_source": "given",
        "review": (ReviewedRow(number=3, decision="forget", reason="the name", row=ROWS[0]),),
        "notes": ("A note.",),
    }
    return RequestRows(**{**given, **more})  # type: ignore[arg-type]


def test_rows_come_back_as_they_were(tmp_path: Path):
    home = Workspace.open(tmp_path / "request")
    assert home.read_rows() is None
    for rows in (request_rows(), request_rows(holdout=RowSet("holdout", ROWS[:1]))):
        home = Workspace.open(tmp_path / str(id(rows)))
        home.start({"kind": "rows"}, None, b"k")
        home.write_rows(rows)
        read = home.read_rows()
        assert read is not None
        assert (read.forget, read.retain, read.holdout) == (rows.forget, rows.retain, rows.holdout)
        assert (read.origins, read.retain_source, read.notes) == (rows.origins, rows.retain_source, rows.notes)
        assert '"decision": "forget"' in home.review.read_text()


def test_only_the_owner_reads_the_key_of_the_hashes(tmp_path: Path):
    home = Workspace.open(tmp_path / "request")
    home.start({"kind": "rows"}, None, b"k")
    home.note(scoring={})
    with home.timed("attacks"):
        pass
    assert (home.path / "request.json").stat().st_mode & 0o777 == 0o600


def test_rows_that_were_edited_are_not_used(tmp_path: Path):
    home = Workspace.open(tmp_path)
    home.start({"kind": "rows"}, None, b"k")
    home.write_rows(request_rows())
    file = home.rows_file("retain")
    file.write_text(file.read_text().replace("Yes", "No"))
    with pytest.raises(RunError, match=r"retain\.jsonl was changed after the start of the request"):
        home.read_rows()


def test_one_directory_holds_one_request(tmp_path: Path):
    home = Workspace.open(tmp_path / "request")
    key = home.hash_key()
    assert len(key) == 32
    assert home.hash_key() != key
    home.start({"kind": "rows", "rows": "abc"}, "seven", key)
    again = Workspace.open(tmp_path / "request")
    assert again.hash_key() == key
    again.check({"kind": "rows", "rows": "abc"}, None)
    again.check({"kind": "rows", "rows": "abc"}, "seven")
    for asked, name in (({"kind": "rows", "rows": "abd"}, None), ({"kind": "rows", "rows": "abc"}, "eight")):
        with pytest.raises(RunError, match=r"holds another request, which differs in (rows|id):"):
            again.check(asked, name)
    again.start({"kind": "person"}, "nine", b"other")
    assert again.state() == home.state()


def test_the_settings_in_which_a_request_differs_are_named(tmp_path: Path):
    def asked(**hashes: str) -> dict[str, object]:
        return {"kind": "rows", "settings": str(sorted(hashes.items())), "settings_by_key": hashes}

    home = Workspace.open(tmp_path / "new")
    home.start(asked(**{"model.path": "a", "method.name": "b", "engine.precision": "c"}), None, b"k")
    with pytest.raises(
        RunError, match=r"differs in settings \(method\.name, data\.max_length and engine\.precision\):"
    ):
        home.check(asked(**{"model.path": "a", "method.name": "other", "data.max_length": "d"}), None)
    # A request of an older version has one hash of all settings.
    old = Workspace.open(tmp_path / "old")
    old.start({"kind": "rows", "settings": "one"}, None, b"k")
    old.check({"kind": "rows", "settings": "one", "settings_by_key": {"method.name": "b"}}, None)
    with pytest.raises(RunError, match="differs in settings: name a new directory"):
        old.check({"kind": "rows", "settings": "two", "settings_by_key": {"method.name": "b"}}, None)


def test_seconds_of_a_step_add_up_and_the_end_is_stored_once(tmp_path: Path):
    home = Workspace.open(tmp_path)
    home.start({}, None, b"k")
    with home.timed("search"):
        pass
    with pytest.raises(ZeroDivisionError), home.timed("search"):
        raise ZeroDivisionError
    with home.timed("attacks"):
        pass
    state = home.state()
    assert state is not None
    assert set(state["seconds"]) == {"search", "attacks"}
    assert home.finish() == home.finish()


@pytest.mark.parametrize("name", ["request.json", "rows", "search", "model", "evaluations", "evidence"])
def test_files_of_the_user_are_left_alone(tmp_path: Path, name: str):
    if "." in name:
        (tmp_path / name).write_text("{}")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        Workspace.open(tmp_path)


def test_a_link_in_the_directory_is_refused(tmp_path: Path):
    home = Workspace.open(tmp_path / "request")
    home.start({}, None, b"k")
    (tmp_path / "elsewhere").mkdir()
    (home.path / "evidence").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        Workspace.open(home.path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        Workspace.open(tmp_path / "file")
