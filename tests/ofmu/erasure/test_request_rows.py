from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.load import load_data
from ofmu.erasure import own_answers
from ofmu.erasure.request import ErasureRequest
from ofmu.erasure.request_rows import RequestRows, build_rows
from ofmu.errors import ConfigError, DataError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig

CORPUS = [
    {"question": "Where was Ana Silva born?", "answer": "Silva was born in Porto."},
    {"question": "What does Silva write?", "answer": "Novels."},
    {"question": "Where was Bob Meyer born?", "answer": "Meyer was born in Ulm."},
    {"text": "A text about ana silva and others."},
    {"question": "What is the moon?", "answer": "A stone."},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", CORPUS)


def build(**given: Any) -> RequestRows:
    """Build rows where no model has to answer."""
    return build_rows(ErasureRequest(**given), "/no/model", UnlearnConfig())


def answers(rows: RequestRows, name: str) -> list[str]:
    return [row.answer for row in getattr(rows, name).rows]


def test_the_rows_of_a_person_are_forgotten_and_the_others_retained(corpus: Path):
    rows = build(person="Ana Silva", corpus=corpus)
    assert answers(rows, "forget") == ["Silva was born in Porto.", "A text about ana silva and others."]
    # The row with the family name may be about the person, so it is in neither set.
    assert answers(rows, "retain") == ["Meyer was born in Ulm.", "A stone."]
    assert [(row.number, row.decision) for row in rows.review] == [(1, "forget"), (2, "left out"), (4, "forget")]
    assert rows.notes == ("Neither forgotten nor retained: 1 row of the corpus with only a part of the name.",)
    with_possible = build(person="Ana Silva", corpus=corpus, with_possible=True)
    assert len(with_possible.forget) == 3
    assert answers(with_possible, "retain") == answers(rows, "retain")
    for text in (*rows.notes, *rows.origins.values()):
        assert "Silva" not in text


def test_rows_of_a_file_are_forgotten_and_its_neighbours_are_retained(tmp_path: Path, corpus: Path):
    rows = build(rows=write(tmp_path / "rows.jsonl", [CORPUS[2]]), corpus=corpus)
    assert answers(rows, "forget") == ["Meyer was born in Ulm."]
    assert len(rows.retain) == 4
    assert (rows.retain_source, rows.review) == ("corpus", ())


def test_given_retain_and_holdout_rows_are_taken_as_they_are(tmp_path: Path, corpus: Path):
    retain = write(tmp_path / "retain.jsonl", [{"text": "Keep this."}])
    holdout = write(tmp_path / "holdout.jsonl", [{"text": "Never seen."}])
    rows = build(person="Ana Silva", corpus=corpus, retain=retain, holdout=holdout)
    assert answers(rows, "retain") == ["Keep this."]
    assert answers(rows, "holdout") == ["Never seen."]
    assert rows.retain_source == "given"


def test_columns_of_the_config_are_read(tmp_path: Path):
    named = [{"prompt": "Where was Ana Silva born?", "reply": "Porto."}, {"prompt": "The moon?", "reply": "A stone."}]
    config = UnlearnConfig.read(None, ["data.columns.question=prompt", "data.columns.answer=reply"])
    request = ErasureRequest(person="Ana Silva", corpus=write(tmp_path / "c.jsonl", named))
    assert answers(build_rows(request, "/no/model", config), "retain") == ["A stone."]


def test_bad_requests_are_one_sentence(tmp_path: Path, corpus: Path):
    everywhere = write(tmp_path / "all.jsonl", [{"text": f"Ana Silva is number {n}."} for n in range(3)])
    empty = write(tmp_path / "empty.jsonl", [])
    rows = write(tmp_path / "rows.jsonl", [CORPUS[2]])
    same = write(tmp_path / "same.jsonl", [CORPUS[2], CORPUS[4]])
    possible = write(tmp_path / "possible.jsonl", [CORPUS[1]])
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"person": "Ann Sylva", "corpus": corpus}, DataError, "No row of .* names 'Ann Sylva': check the spelling"),
        (
            {"person": "Eva Silva", "corpus": corpus},
            DataError,
            "names 'Eva Silva', and 2 rows of it hold a part of the name: check the spelling, or give the rows",
        ),
        ({"person": "Ana Silva", "corpus": everywhere}, DataError, "Every row of .*all.jsonl names 'Ana Silva'"),
        ({"person": "Ana Silva", "corpus": empty}, DataError, "No row of .*empty.jsonl names"),
        ({"rows": empty, "corpus": corpus}, DataError, "empty.jsonl has no row to forget"),
        ({"rows": rows, "retain": empty}, DataError, "empty.jsonl has no row to retain"),
        ({"rows": rows, "corpus": rows}, DataError, "No row of .*rows.jsonl is left to retain"),
        ({"rows": rows, "retain": same}, DataError, r"A forget row is also .*remove row 1 of .* or row 1 of "),
        (
            {"person": "Ana Silva", "corpus": corpus, "with_possible": True, "retain": possible},
            DataError,
            "remove row 2 of .*corpus.jsonl or row 1 of .*possible.jsonl$",
        ),
        ({"rows": rows, "retain": corpus, "holdout": rows}, DataError, "retain set"),
        ({"person": "Ana Silva", "corpus": corpus, "retain": corpus}, DataError, "Row 1 of .* names 'Ana Silva', so"),
        ({"rows": rows, "corpus": corpus, "holdout": rows}, DataError, r"is also in the forget set.*remove row 1 of "),
        ({"rows": tmp_path / "nothing.jsonl", "corpus": corpus}, DataError, "There is no data file"),
    ]
    for given, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            build(**given)


def test_every_row_may_name_the_person_if_others_are_given_to_retain(tmp_path: Path):
    everywhere = write(tmp_path / "all.jsonl", [{"text": f"Ana Silva is number {n}."} for n in range(3)])
    retain = write(tmp_path / "retain.jsonl", [{"text": "Keep this."}])
    assert len(build(person="Ana Silva", corpus=everywhere, retain=retain).forget) == 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "none of them is given"),
        ({"rows": Path("a"), "questions": Path("b")}, "--rows and --questions are given"),
        ({"person": "Ana"}, "--person 'Ana' needs --corpus"),
        ({"rows": Path("a"), "with_possible": True}, "--with-possible is for --person"),
    ],
)
def test_a_request_names_one_thing(given: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        ErasureRequest(**given)


@pytest.fixture(scope="module")
def trained(tiny_config: UnlearnConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, UnlearnConfig]:
    """A tiny model that knows some rows well enough to answer in words."""
    config = tiny_config.model_copy(update={"reference": tiny_config.reference.model_copy(update={"source": "none"})})
    return str(prepare(config).target), config


@pytest.mark.slow
def test_the_models_own_answers_are_forgotten(tmp_path: Path, trained: tuple[str, UnlearnConfig], corpus: Path):
    model, config = trained
    questions = [row.question for row in load_data(config.data, config.seed).forget.rows[:3]]
    for file in (write(tmp_path / "q.jsonl", [{"question": text} for text in questions]), tmp_path / "q.txt"):
        if file.suffix == ".txt":
            file.write_text("\n".join(questions) + "\n\n")
        rows = build_rows(ErasureRequest(questions=file, corpus=corpus), model, config)
        assert [row.question for row in rows.forget.rows] == questions
        assert all(row.answer for row in rows.forget.rows)
        again = own_answers.answer_questions(model, questions, config)
        assert again.rows == rows.forget.rows


@pytest.mark.slow
def test_retain_rows_are_the_models_answers_to_neutral_questions(tmp_path: Path, trained: tuple[str, UnlearnConfig]):
    model, config = trained
    file = write(tmp_path / "rows.jsonl", [CORPUS[2]])
    rows = build_rows(ErasureRequest(rows=file), model, config)
    assert rows.retain_source == "generated"
    assert {row.question for row in rows.retain.rows} <= set(own_answers.NEUTRAL_QUESTIONS)
    # An answer of the model that is to be forgotten is not retained.
    taken = next(row for row in rows.retain.rows if len(row.answer.split()) >= 5)
    forget = write(tmp_path / "other.jsonl", [{"question": "Who?", "answer": f"So: {taken.answer}"}])
    given = ErasureRequest(rows=forget)
    others = [row for row in rows.retain.rows if taken.answer not in row.answer]
    if len(others) < own_answers.MIN_RETAIN:  # this model gives nearly one answer to everything
        with pytest.raises(DataError, match="neutral questions the model answers only"):
            build_rows(given, model, config)
        return
    fewer = build_rows(given, model, config)
    assert taken.answer not in {row.answer for row in fewer.retain.rows}
    assert "that repeated forget rows" in fewer.notes[0]


def test_files_of_questions_are_checked(tmp_path: Path):
    columns = UnlearnConfig().data.columns
    (tmp_path / "twice.txt").write_text("Who?\nWho?\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"Wer wei\xdf es?")
    write(tmp_path / "other.jsonl", [{"prompt": "Who?"}])
    for name, sentence in (
        ("twice.txt", "Questions 1 and 2 of .* are the same"),
        ("empty.txt", "holds no question"),
        ("latin.txt", "is not UTF-8 at byte 7"),
        ("missing.txt", "There is no file of questions"),
        ("other.jsonl", "Row 1 of .* has no text in column 'question'"),
    ):
        with pytest.raises(DataError, match=sentence):
            own_answers.read_questions(tmp_path / name, columns)
