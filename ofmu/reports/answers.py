"""Answers of several models side by side, on a sample of the rows of each evaluation set."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ofmu.evaluation.scores import RowScores, Scores
from ofmu.evaluation.sets import FORGET, HOLDOUT, IN_SCOPE_KINDS, IN_SCOPE_PREFIX, MEMBERS, RETAIN

ROWS_PER_SET = 24
_TITLES = {
    FORGET: "Forget rows",
    RETAIN: "Retain rows",
    **{f"{IN_SCOPE_PREFIX}{kind}": f"Forget rows, {adjective} questions" for kind, adjective in IN_SCOPE_KINDS.items()},
}
_WORD = re.compile(r"\w+")
_COMMON_SHARE = 0.2
"""Words of more than this share of a set's right answers are not marked."""
_SHORT = 3
"""Words of fewer letters are not marked."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One model's answer to one question."""

    model: str
    parts: tuple[tuple[str, bool], ...]
    """The text in parts. True: words of the right answer that neither the question nor many other answers hold."""
    rouge: float | None
    """ROUGE-L recall of the text against the right answer."""
    probability: float | None
    """Length-normalised probability of the right answer."""


@dataclass(frozen=True, kw_only=True)
class AnsweredRow:
    """One row and its answers."""

    question: str
    truth: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class AnsweredSet:
    """A sample of one evaluation set."""

    title: str
    rows: tuple[AnsweredRow, ...]
    total: int
    """Rows of the whole set."""
    is_main: bool
    """Whether unlearning is about this set: forget rows, retain rows, or hard questions about forget rows."""


def answered_sets(models: Mapping[str, Scores], limit: int = ROWS_PER_SET) -> list[AnsweredSet]:
    """Return the answers on at most ``limit`` rows of each set. The sample depends on the content of the rows only.

    Args:
        models: the scores of each model, by the name that the page shows. The first model's rows are shown, and a
            row that another model lacks has no answer of that model.
        limit: largest number of rows of a set.
    """
    first = next(iter(models.values()))
    order = [name for name in (*_TITLES, *first.sets) if name in first.sets and name not in (HOLDOUT, MEMBERS)]
    found = []
    for name in dict.fromkeys(order):
        rows = sorted(first.sets[name], key=_key)[:limit]
        others = {model: {_key(row): row for row in scores.sets.get(name, ())} for model, scores in models.items()}
        common = _common_words(first.sets[name])
        answered = tuple(_answered(row, others, common) for row in rows)
        title = _TITLES.get(name, name.replace("_", " ").capitalize())
        found.append(AnsweredSet(title=title, rows=answered, total=len(first.sets[name]), is_main=name in _TITLES))
    return found


def _key(row: RowScores) -> str:
    """Return what identifies a row. Rows of an official log have no hash, and are found by question and answer."""
    return row.row_hash or f"{row.question}\n{row.ground_truth}"


def _common_words(rows: Sequence[RowScores]) -> set[str]:
    """Return the words that many right answers of a set share, such as articles. They reveal nothing about a row."""
    counts = Counter(word for row in rows for word in _words(row.ground_truth))
    return {word for word, count in counts.items() if count > max(2, _COMMON_SHARE * len(rows))}


def _answered(row: RowScores, models: Mapping[str, Mapping[str, RowScores]], common: set[str]) -> AnsweredRow:
    revealing = _words(row.ground_truth) - _words(row.question) - common
    answers = tuple(_answer(name, rows[_key(row)], revealing) for name, rows in models.items() if _key(row) in rows)
    return AnsweredRow(question=row.question, truth=row.ground_truth, answers=answers)


def _answer(model: str, scored: RowScores, revealing: set[str]) -> Answer:
    loss = math.nan if scored.answer is None else scored.answer.mean
    return Answer(
        model=model,
        parts=tuple(_parts(scored.generated or "", revealing)),
        rouge=scored.rouge,
        probability=math.exp(-loss) if math.isfinite(loss) else None,
    )


def _words(text: str) -> set[str]:
    return {word for word in map(str.lower, _WORD.findall(text)) if len(word) >= _SHORT}


def _parts(text: str, marked: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the text in parts. Neighbouring marked words form one part."""
    spans: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        if match[0].lower() in marked:
            if spans and not text[spans[-1][1] : match.start()].strip():
                spans[-1] = spans[-1][0], match.end()
            else:
                spans.append(match.span())
    end = 0
    for start, stop in spans:
        if start > end:
            yield text[end:start], False
        yield text[start:stop], True
        end = stop
    if end < len(text):
        yield text[end:], False
