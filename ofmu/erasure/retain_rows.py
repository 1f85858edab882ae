"""Choose the retain rows of a request from a corpus: rows near to what is forgotten, and rows far from it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofmu.data.normalized import normalized
from ofmu.data.rows import Row
from ofmu.erasure.person import searched_text

MIN_RETAIN_ROWS = 400
"""Upper bound on the chosen rows, unless there are more forget rows. An evaluation scores as many retain rows."""
MAX_SIMILARITY = 0.8
"""Cosine of TF-IDF vectors from which a row says nearly the same as a forget row."""
_NEAR_SHARE = 0.5


@dataclass(frozen=True)
class ChosenRows:
    """The retain rows that were chosen from a corpus."""

    rows: tuple[Row, ...]
    near: int
    """Number of the rows that were chosen since they are nearest to the forget rows. The others are drawn."""
    too_similar: tuple[Row, ...]
    """Rows that say nearly the same as a forget row. They are neither forgotten nor retained."""
    available: int
    """Rows of the corpus that could be chosen."""


def choose_retain_rows(
    corpus: Sequence[Row], forget: Sequence[Row], seed: int, earlier: Sequence[Row] = ()
) -> ChosenRows:
    """Choose retain rows from the rows of a corpus that are not forgotten.

    Unlearning harms the neighbours of the forgotten rows first, so half of the rows are the nearest ones. Distance is
    the cosine of TF-IDF vectors of words. The other rows are drawn evenly. A row that says nearly the same as a forget
    row would restore it, and is left out.

    Args:
        corpus: the rows. Forget rows among them do not count.
        forget: the forget rows.
        seed: draws the rows that are not near.
        earlier: the forget rows of earlier requests. Rows that repeat them are left out as well, and being near to them
            does not count.
    """
    forgotten = {normalized(row) for row in (*forget, *earlier)}
    others = [row for row in dict.fromkeys(corpus) if normalized(row) not in forgotten]
    if not others:
        return ChosenRows((), 0, (), 0)
    similarity = _nearest_similarity(others, forget)
    repeats = similarity if not earlier else np.maximum(similarity, _nearest_similarity(others, earlier))
    usable = [index for index in range(len(others)) if repeats[index] < MAX_SIMILARITY]
    too_similar = tuple(others[index] for index in range(len(others)) if repeats[index] >= MAX_SIMILARITY)
    count = min(len(usable), max(MIN_RETAIN_ROWS, len(forget)))
    if count == len(usable):
        return ChosenRows(tuple(others[index] for index in usable), 0, too_similar, len(usable))
    near = int(count * _NEAR_SHARE)
    by_distance = sorted(usable, key=lambda index: (-similarity[index], index))
    drawn = random.Random(seed).sample(by_distance[near:], count - near)
    chosen = sorted([*by_distance[:near], *drawn])
    return ChosenRows(tuple(others[index] for index in chosen), near, too_similar, len(usable))


def _nearest_similarity(rows: Sequence[Row], forget: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Return each row's largest cosine with a forget row, shape (rows,)."""
    # scikit-learn takes a second to import.
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [searched_text(row) for row in (*rows, *forget)]
    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    except ValueError:  # no text has a word of two letters
        return np.zeros(len(rows))
    cosines = vectors[: len(rows)] @ vectors[len(rows) :].T
    return np.asarray(cosines.max(axis=1).todense(), dtype=np.float64).ravel()
