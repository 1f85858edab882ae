"""Rows that a request must not retain, since an earlier request of its chain forgot them or left them out."""

from __future__ import annotations

from collections.abc import Sequence

from ofmu.chain.rows import EarlierRows
from ofmu.data.normalized import normalized
from ofmu.data.rows import Row
from ofmu.erasure.person import find_mentions


def forgotten_rows(earlier: Sequence[EarlierRows]) -> tuple[Row, ...]:
    """Return the forget rows of all earlier requests, the oldest first."""
    return tuple(row for request in earlier for row in request.forget)


def kind_of_earlier(earlier: Sequence[EarlierRows]) -> str:
    """Return in words what forgot the rows: earlier requests, what ran before their chain, or both."""
    kinds = {request.is_run for request in earlier}
    return "earlier requests and runs" if len(kinds) == 2 else "earlier runs" if True in kinds else "earlier requests"


def kept_out(rows: Sequence[Row], earlier: Sequence[EarlierRows], *, with_parts: bool) -> set[int]:
    """Return the indices of the rows that must not be retained.

    Args:
        rows: rows that could be retained.
        earlier: the earlier requests.
        with_parts: whether rows with only a part of the name of an earlier request's person are kept out too.
    """
    known = {normalized(row) for request in earlier for row in (*request.forget, *request.left_out)}
    found = {index for index, row in enumerate(rows) if normalized(row) in known}
    for person in {request.person for request in earlier if request.person is not None}:
        mentions = find_mentions(rows, person)
        found |= {*mentions.named, *(mentions.possible if with_parts else ())}
    return found
