"""CSV files as records of text. No row is split, joined, shifted or filled up in silence."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ofmu.errors import DataError


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file in UTF-8, with commas and a header. Every cell stays the text that it is.

    Raises:
        DataError: a column stands twice, a row has another number of cells than the header, a quotation mark is not
            closed, or the file holds NUL bytes. The message names the row.
        UnicodeDecodeError: the file is not UTF-8.
    """
    text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"The data file {path} holds a NUL byte in line {line}: save it as CSV in UTF-8")
    # A lone carriage return ends a line only in a file that has no other line ends. Elsewhere it belongs to a text.
    stream = io.StringIO(text, newline="\n" if "\n" in text else "")
    records: list[dict[str, str]] = []
    with _no_limit_on_cells():
        rows = csv.reader(stream, strict=True)
        try:
            header = next(rows, None)
            if header is None:
                return []
            check_unique_columns(header, path)
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"Row {len(records) + 1} of {path} has {len(cells)} cells, and the header has {len(header)}: "
                        "quote cells that hold commas or line breaks"
                    )
                records.append(dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]
            raise DataError(
                f"Row {len(records) + 1} of {path} is not valid CSV ({reason}): quote cells that hold commas, "
                "quotation marks or line breaks"
            ) from error
    return records


def check_unique_columns(names: Sequence[str], path: Path) -> None:
    """Check that no column stands twice. Columns without a name, such as an index, may.

    Raises:
        DataError: a column stands twice.
    """
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"The data file {path} has the column '{repeated}' twice: keep one of them")


@contextmanager
def _no_limit_on_cells() -> Iterator[None]:
    """Read cells of any length. The limit of Python's csv module is a setting of the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
