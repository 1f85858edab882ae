from __future__ import annotations

import pytest

from ofmu.data.rows import Row
from ofmu.erasure.person import find_mentions
from ofmu.errors import DataError


def row(text: str, **more: object) -> Row:
    return Row(question="Who?", answer=text, **more)  # type: ignore[arg-type]


def found(person: str, *texts: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    mentions = find_mentions([row(text) for text in texts], person)
    return mentions.named, mentions.possible


@pytest.mark.parametrize(
    ("person", "text"),
    [
        ("Ana Silva", "ANA SILVA was born here."),
        ("Ana Silva", "I met Ana\n  Silva."),
        ("Ana Silva", "Ana Silva's house"),
        ("Ana Silva", "“Ana Silva”"),
        ("José García", "Jose Garcia sang."),
        ("Jose Garcia", "José García sang."),
        ("José García", "Jose\u0301 Garci\u0301a sang."),
        ("Ana Silva", "A\u200bna Sil\u00adva"),
        ("Jean-Luc O'Neil", "as jean-luc o'neil said"),
        ("张伟", "我的朋友张伟的书"),
        ("김민수", "김민수는 학생이다"),
        ("สมชาย", "คุณสมชายมา"),
        ("अमित कुमार", "अमित कुमार लेखक हैं"),
        ("Ms. X. (Ana)", "It was ms. x. (ana) then"),
    ],
)
def test_a_row_that_names_the_person_is_found(person: str, text: str):
    assert found(person, "nothing at all", text) == ((1,), ())


@pytest.mark.parametrize(
    ("person", "text"),
    [
        ("Ana", "Anabel sang"),
        ("Ana Silva", "Joana Silvano"),
        ("Ana Silva", "Ana met Bob Silvan"),
        ("Li Po", "Poland and Lille"),
        ("अमित", "अमिताभ"),
    ],
)
def test_a_name_inside_of_another_word_is_none(person: str, text: str):
    assert found(person, text)[0] == ()


def test_parts_of_a_name_are_possible_in_the_written_case_only():
    texts = ("Ana Silva", "Ms Silva said", "an ana", "Ana said", "SILVA")
    assert found("Ana Silva", *texts) == ((0,), (1, 3))
    assert found("ana silva", *texts) == ((0,), (1, 2, 3))
    assert found("May Li", "May Li", "It may rain", "In May") == ((0,), (2,))
    # A name of one word has no other parts, and parts of two letters are words of many languages.
    assert found("Silva", "Silva", "Silvan") == ((0,), ())
    assert found("J. de Groot", "J. de Groot", "de trein", "Groot") == ((0,), (2,))


def test_questions_and_paraphrases_count_and_wrong_answers_do_not():
    rows = [
        Row(question="Where was Ana Silva born?", answer="In Porto."),
        Row(question="Who?", answer="Bob", perturbed_answers=("Ana Silva",)),
        row("She", paraphrased_question="What of Ana Silva?"),
        row("She", paraphrased_answer="Ana Silva"),
        row("She", translated_answer="Ana Silva"),
        Row(question="", answer="A text about Ana Silva."),
    ]
    assert find_mentions(rows, "Ana Silva").named == (0, 2, 3, 4, 5)


@pytest.mark.parametrize("name", ["", "  ", "12", "…"])
def test_a_name_without_a_letter_is_refused(name: str):
    with pytest.raises(DataError, match="no name of a person"):
        find_mentions([row("x")], name)
