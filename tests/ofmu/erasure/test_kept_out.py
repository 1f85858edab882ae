"""Rows of earlier requests do not come back as retain rows, wherever the retain rows come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.chain.rows import EarlierRows
from ofmu.data.rows import Row
from ofmu.erasure import own_answers
from ofmu.erasure.neutral_questions import NEUTRAL_QUESTIONS
from ofmu.erasure.request import ErasureRequest
from ofmu.erasure.request_rows import RequestRows, build_rows
from ofmu.errors import DataError
from ofmu.run_config import UnlearnConfig

EARLIER = (
    EarlierRows(
        id="first",
        forget=(Row(question="Where was Bob Meyer born?", answer="Meyer was born in Ulm near the river."),),
        left_out=(Row(question="", answer="Somebody called Bob plays chess."),),
        person="Bob Meyer",
    ),
    EarlierRows(id="second", forget=(Row(question="What is the sun?", answer="A star."),)),
)
NEW = {"question": "What is the moon?", "answer": "A stone."}
KEPT = {"question": "What is water?", "answer": "A liquid."}
FORMER = [
    {"question": "where was BOB MEYER born?", "answer": "Meyer was born in Ulm\u200b near the river."},
    {"text": "Somebody called  Bob plays chess."},
    {"question": "What is the sun?", "answer": "A star."},
    {"text": "A letter to Bob Meyer."},
]
"""Rows that an earlier request forgot, or left out, or that name its person."""
PART = {"text": "Meyer is also a baker."}
"""A part of the name of an earlier person."""
SIMILAR = {"question": "Where was Meyer born?", "answer": "Bob was born in Ulm near the river."}
"""It says nearly the same as an earlier forget row, without the whole name."""


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def build(folder: Path, earlier: tuple[EarlierRows, ...] = EARLIER, **given: Any) -> RequestRows:
    request = ErasureRequest(rows=write(folder / "rows.jsonl", NEW), **given)
    return build_rows(request, "/no/model", UnlearnConfig(), earlier)


def answers(rows: RequestRows) -> list[str]:
    return [row.answer for row in rows.retain.rows]


def test_given_retain_rows_are_left_out_and_said(tmp_path: Path):
    retain = write(tmp_path / "retain.jsonl", *FORMER, KEPT, PART)
    rows = build(tmp_path, retain=retain)
    assert answers(rows) == ["A liquid.", "Meyer is also a baker."]
    assert rows.notes == ("Not retained because of earlier requests: 4 rows of the given file.",)
    assert len(build(tmp_path, (), retain=retain).retain) == 6
    with pytest.raises(DataError, match=r"Earlier requests forgot every row of .*all\.jsonl, so no row is left"):
        build(tmp_path, retain=write(tmp_path / "all.jsonl", *FORMER))


def test_rows_of_a_corpus_are_left_out_with_parts_of_the_name_and_near_repeats(tmp_path: Path):
    corpus = write(tmp_path / "corpus.jsonl", NEW, *FORMER, KEPT, PART, SIMILAR)
    rows = build(tmp_path, corpus=corpus)
    assert answers(rows) == ["A liquid."]
    assert [row.decision for row in rows.review] == ["left out"] * 6
    assert {row.number for row in rows.review} == {2, 3, 4, 5, 7, 8}
    assert any("retained because of earlier requests: 6 rows" in note for note in rows.notes)
    nearly = {"text": "The sun what is: a star, a star."}
    corpus = write(tmp_path / "corpus.jsonl", NEW, KEPT, nearly)
    assert answers(build(tmp_path, corpus=corpus)) == ["A liquid."]
    assert len(build(tmp_path, (), corpus=corpus).retain) == 2


def test_generated_answers_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bad = [
        "I think Meyer was born in Ulm near the river.",
        "Ask Bob Meyer.",
        "Meyer.",
        "It is that somebody called Bob plays chess.",
    ]
    made = [Row(question=text, answer=f"Answer {number}.") for number, text in enumerate(NEUTRAL_QUESTIONS[:20])]
    made[:4] = [Row(question=row.question, answer=text) for row, text in zip(made, bad, strict=False)]
    answered = own_answers.AnsweredQuestions(tuple(made), 0)
    monkeypatch.setattr(own_answers, "answer_questions", lambda model, questions, config: answered)
    rows = build(tmp_path)
    assert answers(rows) == [f"Answer {number}." for number in range(4, 20)]
    assert rows.notes == ("Left out: 4 answers to neutral questions that repeated forget rows.",)
    assert len(build(tmp_path, ()).retain) == 20


def test_a_holdout_row_that_was_forgotten_once_is_refused(tmp_path: Path):
    retain, holdout = write(tmp_path / "retain.jsonl", KEPT), write(tmp_path / "holdout.jsonl", FORMER[2])
    build(tmp_path, (), retain=retain, holdout=holdout)
    with pytest.raises(DataError, match=r"is also in the earlier forget set.*remove row 1 of"):
        build(tmp_path, retain=retain, holdout=holdout)


def test_a_row_that_is_forgotten_again_is_said(tmp_path: Path):
    again = EarlierRows(id="third", forget=(Row(**NEW),))
    rows = build(tmp_path, (again,), retain=write(tmp_path / "retain.jsonl", KEPT))
    assert len(rows.forget) == 1
    assert rows.notes == ("Forgotten again: 1 row that an earlier request forgot as well.",)
