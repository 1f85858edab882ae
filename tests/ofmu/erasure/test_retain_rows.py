from __future__ import annotations

import math
from collections import Counter

import pytest

from ofmu.data.rows import Row
from ofmu.erasure import retain_rows
from ofmu.erasure.retain_rows import choose_retain_rows


def rows_about(topic: str, count: int) -> list[Row]:
    return [
        Row(question=f"What is {topic} number {n}?", answer=f"{topic} is the {n}th of {n + 7}.") for n in range(count)
    ]


def plain_cosine(left: str, right: str) -> float:
    """Cosine of word counts, without any weights."""
    a, b = (Counter(text.lower().split()) for text in (left, right))
    return sum(a[word] * b[word] for word in a) / math.sqrt(
        sum(v * v for v in a.values()) * sum(v * v for v in b.values())
    )


def test_all_other_rows_are_retained_when_they_are_few():
    forget, others = rows_about("dogs", 3), rows_about("moons", 5)
    chosen = choose_retain_rows([*others, *forget], forget, seed=0)
    assert list(chosen.rows) == others
    assert (chosen.near, chosen.available) == (0, 5)


def test_half_of_a_large_corpus_is_near_and_the_rest_is_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retain_rows, "MIN_RETAIN_ROWS", 20)
    forget = [Row(question="Where do penguins live?", answer="Penguins live on the cold southern ice.")]
    near = [Row(question=f"Do penguins eat {n}?", answer=f"Penguins on ice eat fish {n}.") for n in range(10)]
    far = rows_about("moons", 200)
    chosen = choose_retain_rows([*far[:100], *near, *far[100:]], forget, seed=0)
    assert len(chosen.rows) == 20
    assert chosen.near == 10
    assert set(near) <= set(chosen.rows)
    others = [plain_cosine(row.answer, forget[0].answer) for row in chosen.rows if row not in near]
    assert max(others) < min(plain_cosine(row.answer, forget[0].answer) for row in near)
    again = choose_retain_rows([*far[:100], *near, *far[100:]], forget, seed=0)
    other = choose_retain_rows([*far[:100], *near, *far[100:]], forget, seed=1)
    assert again == chosen != other


def test_rows_that_would_restore_the_forgotten_are_left_out():
    forget = [Row(question="Where was Ana born?", answer="Ana was born in Porto in May.")]
    copies = [
        Row(question="where  was ANA born?", answer="ana was born in porto in may."),
        Row(question="Where was Ana born?", answer="Ana was born in May, in Porto."),
    ]
    others = rows_about("moons", 9)
    chosen = choose_retain_rows([*copies, *others, *others], forget, seed=0)
    # The first copy is the forget row in another case, and no row of the corpus is retained twice.
    assert list(chosen.rows) == others
    assert chosen.too_similar == (copies[1],)


def test_a_corpus_without_other_rows_gives_none():
    forget = rows_about("dogs", 3)
    assert choose_retain_rows(forget, forget, seed=0).rows == ()
    marks = [Row(question="", answer="!"), Row(question="", answer="?")]
    assert choose_retain_rows(marks, [Row(question="", answer="…")], seed=0).rows == tuple(marks)
