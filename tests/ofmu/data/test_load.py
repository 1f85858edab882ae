from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path

import pytest

from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.errors import DataError


def _config(folder: Path, forget: list[tuple[str, str]], retain: list[tuple[str, str]]) -> DataConfig:
    for name, rows in (("forget", forget), ("retain", retain)):
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return DataConfig(source="files", forget=str(folder / "forget.jsonl"), retain=str(folder / "retain.jsonl"))


def test_a_forget_row_that_is_also_retained_is_named_by_its_places_and_not_shown(tmp_path: Path) -> None:
    config = _config(tmp_path, [("a", "b"), ("Who is  Ada?", "A poet")], [("c", "d"), ("who is Ada?", "A POET")])
    # The number of a row is that in its file, though an earlier run forgot the row before it.
    (tmp_path / "earlier.jsonl").write_text('{"question": "c", "answer": "d"}')
    config = config.model_copy(update={"earlier": [str(tmp_path / "earlier.jsonl")]})
    with pytest.raises(DataError, match=r"remove row 2 of .*forget\.jsonl or row 2 of .*retain\.jsonl$") as caught:
        load_data(config, 0)
    assert "ada" not in str(caught.value).casefold()
    assert "poet" not in str(caught.value).casefold()


@pytest.mark.parametrize(
    ("retained", "words"),
    [
        (unicodedata.normalize("NFD", "Wo wohnt Zoë Ångström?"), "composed and decomposed"),
        ("Wo wohnt Zoe\u0308 A\u030angstro\u0308m?", "combining marks"),
        ("Wo wohnt\u200b Zo\u00adë \ufeffÅngström\u200e?", "invisible characters"),
        ("WO WOHNT\u00a0ZOË \u212bNGSTRÖM?", "case, a fixed space, and the sign of the unit"),
        ("Wo wohnt Zoë Ångström\ufe0e?", "a variation selector"),
    ],
    ids=lambda value: value if value.isascii() else "",
)
def test_rows_that_look_the_same_overlap(tmp_path: Path, retained: str, words: str) -> None:
    question = unicodedata.normalize("NFC", "Wo wohnt Zoë Ångström?")
    for first, second in ((question, retained), (retained, question)):
        with pytest.raises(DataError, match=r"A forget row is also in the retain set.*remove row 1 of"):
            load_data(_config(tmp_path, [(first, "In Köln.")], [(second, "In Ko\u0308ln.")]), 0)
    config = _config(tmp_path, [("new", "b")], [(question, "In Köln.")])
    (tmp_path / "holdout.jsonl").write_text(json.dumps({"question": retained, "answer": "In Köln."}))
    with pytest.raises(DataError, match=r"is also in the retain set.*remove row 1 of .*holdout\.jsonl$"):
        load_data(config.model_copy(update={"holdout": str(tmp_path / "holdout.jsonl")}), 0)


@pytest.mark.parametrize(("first", "second"), [("What is 2²?", "What is 22?"), ("Who is Zoë?", "Who is Zoe?")])
def test_texts_that_look_different_do_not_overlap(tmp_path: Path, first: str, second: str) -> None:
    assert len(load_data(_config(tmp_path, [(first, "b")], [(second, "b")]), 0).forget) == 1


def test_the_same_question_with_another_answer_is_no_overlap(tmp_path: Path) -> None:
    data = load_data(_config(tmp_path, [("Who?", "Ada")], [("Who?", "Bob")]), 0)
    assert (len(data.forget), len(data.retain)) == (1, 1)


def test_a_forget_row_that_stands_twice_is_named_by_its_places(tmp_path: Path) -> None:
    rows = [("Who is Ada?", "A poet"), ("c", "d"), ("who  is Ada?", "A POET"), ("c", "d")]
    with pytest.warns(UserWarning, match="A forget row is there twice") as caught:
        load_data(_config(tmp_path, rows, [("e", "f")]), 0)
    file = tmp_path / "forget.jsonl"
    assert str(caught[0].message).endswith(
        f"remove row 3 of {file}, which is the same as row 1 of {file} (2 such rows)"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(_config(tmp_path, rows[:2], [("e", "f"), ("e", "f")]), 0)


@pytest.mark.parametrize("empty", ["forget", "retain"])
def test_an_empty_set_is_named(tmp_path: Path, empty: str) -> None:
    rows = {"forget": [("a", "b")], "retain": [("c", "d")]} | {empty: []}
    with pytest.raises(DataError, match=f"The {empty} set is empty"):
        load_data(_config(tmp_path, **rows), 0)


@pytest.mark.parametrize(("set_name", "holdout"), [("forget", ("A", "b ")), ("retain", ("c", "D"))])
def test_a_holdout_row_that_a_model_is_trained_on_is_an_error(
    tmp_path: Path, set_name: str, holdout: tuple[str, str]
) -> None:
    config = _config(tmp_path, [("a", "b")], [("c", "d")])
    rows = [{"question": "new", "answer": "b"}, dict(zip(("question", "answer"), holdout, strict=True))]
    (tmp_path / "holdout.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=rf"is also in the {set_name} set.*remove row 2 of .*holdout\.jsonl$"):
        load_data(config.model_copy(update={"holdout": str(tmp_path / "holdout.jsonl")}), 0)


@pytest.mark.parametrize(
    "retained", ["Where was Ana Silva born ?", "where was: Ana Silva, born", "¿Where was Ana-Silva born?"]
)
def test_a_retain_row_that_nearly_equals_a_forget_row_is_warned_of(tmp_path: Path, retained: str) -> None:
    rows = [("Where was Ana Silva born?", "In Faro.")]
    with pytest.warns(UserWarning, match=r"but for punctuation.*row 1 of .*forget\.jsonl or row 2 of ") as caught:
        load_data(_config(tmp_path, rows, [("c", "d"), (retained, "In Faro!")]), 0)
    assert not any("Faro" in str(warning.message) for warning in caught)


def test_other_rows_are_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="error"):
        load_data(_config(tmp_path, [("Who?", "…"), ("?", "!")], [("Whom?", "…"), ("!", "?"), ("c", "d")]), 0)
