"""Progress of long work: who loops calls :func:`track`, and who prints passes a listener to :func:`reporting_to`.

Work that is no loop calls :func:`announce` when it begins.

Without a listener, a tracked loop is the plain loop. So libraries and worker processes print nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a loop after one of its items."""

    name: str
    """What is done, such as ``target, training``."""
    share: float
    """Share of the work that is done, from 0 to 1."""
    elapsed: float
    """Seconds since the loop began."""
    remaining: float | None
    """Estimated seconds until the loop ends. None: too little is done for an estimate."""


@dataclass(frozen=True)
class Announcement:
    """A long step without a measure of its progress begins."""

    text: str
    """What is done, as a sentence."""


Listener = Callable[[Progress | Announcement], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_subject: ContextVar[str] = ContextVar("subject", default="")


@contextmanager
def reporting_to(listener: Listener | None) -> Iterator[None]:
    """Call ``listener`` after every item of every loop that is tracked inside the block, and for every announcement.

    None: call nobody.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def working_on(subject: str) -> Iterator[None]:
    """Put ``subject`` before the names of the loops inside the block, such as ``retrain`` before ``training``."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


def announce(text: str) -> None:
    """Say that a long step begins. ``text``: what is done, as a sentence."""
    listener = _listener.get()
    if listener is not None:
        listener(Announcement(text))


def track(items: Sequence[ItemT], name: str, work: Sequence[float] | None = None) -> Iterator[ItemT]:
    """Yield the items, and report the progress after each.

    The first item is often slow, since libraries prepare on it. So the estimate uses the time of the other items.

    Args:
        items: the items of the loop.
        name: what the loop does, such as ``training``.
        work: the work of each item in any unit, such as tokens. None: all items are alike.
    """
    listener = _listener.get()
    if listener is None:
        yield from items
        return
    sizes = [1.0] * len(items) if work is None else [float(size) for size in work]
    total, subject = sum(sizes) or 1.0, _subject.get()
    begin = time.monotonic()
    done, first_end = 0.0, begin
    for index, (item, size) in enumerate(zip(items, sizes, strict=True)):
        yield item
        done, now = done + size, time.monotonic()
        if index == 0:
            first_end = now
        measured = done - sizes[0]
        remaining = (now - first_end) * (total - done) / measured if measured > 0 else None
        listener(
            Progress(
                name=f"{subject}, {name}" if subject else name,
                share=done / total,
                elapsed=now - begin,
                remaining=remaining,
            )
        )


def clock(seconds: float) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
