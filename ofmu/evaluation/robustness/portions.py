"""Work in portions, so that what is held for a portion fits the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")


def portions(items: Iterable[tuple[ItemT, int]], limit: int) -> Iterator[list[ItemT]]:
    """Yield consecutive items whose sizes add up to at most ``limit``. Only a single item may exceed it.

    Args:
        items: each item with its size.
        limit: the bound, in the unit of the sizes.
    """
    portion, held = list[ItemT](), 0
    for item, size in items:
        if portion and held + size > limit:
            yield portion
            portion, held = [], 0
        portion.append(item)
        held += size
    if portion:
        yield portion
