"""The progress of long loops on the console: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from ofmu.io.progress import Announcement, Progress, clock

REFRESH_SECONDS = 0.5
"""Seconds between two changes of the line on a terminal."""
LINE_SECONDS = 30.0
"""Seconds between two lines in a file, a pipe or a notebook. A loop that ends sooner prints none."""

_CLEAR = "\r\x1b[K"
"""Empties the line of a terminal."""


class ProgressPrinter:
    """Prints the progress of loops. An instance is a listener for :func:`ofmu.io.progress.reporting_to`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._printed = time.monotonic()
        self._name = ""

    def __call__(self, progress: Progress | Announcement) -> None:
        """Print the progress if the last print is long enough ago. Remove the line of a terminal at the end.

        An announcement is printed at once.
        """
        stream, now = self._stream or sys.stdout, time.monotonic()
        if isinstance(progress, Announcement):
            print(f"{_CLEAR if stream.isatty() else ''}{progress.text}", file=stream, flush=True)
            return
        if progress.name != self._name:
            self._name, self._printed = progress.name, now - progress.elapsed
        if stream.isatty():
            self._change_line(stream, progress, now)
        elif progress.share < 1 and now - self._printed >= LINE_SECONDS:
            self._printed = now
            print(f"  {describe(progress)}", file=stream, flush=True)

    def _change_line(self, stream: TextIO, progress: Progress, now: float) -> None:
        if progress.share >= 1:
            stream.write(_CLEAR)
        elif now - self._printed >= REFRESH_SECONDS:
            self._printed = now
            stream.write(f"{_CLEAR}  {describe(progress)}")
        stream.flush()


def describe(progress: Progress) -> str:
    """Return the progress as text, such as ``target, training: 40 %, about 1:20 left``."""
    left = "" if progress.remaining is None else f", about {clock(progress.remaining)} left"
    return f"{progress.name}: {progress.share:.0%}{left}".replace("%", " %")
