"""Print a table: with rich on a terminal, and as aligned plain lines in a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Cell = str | tuple[tuple[str, str], ...]
"""A cell's text, or its parts, each a text and a rich style such as ``bold``. Rich markup in a text has no effect."""


@dataclass(frozen=True)
class Column:
    """One column of a table on a terminal."""

    header: str
    justify: Literal["left", "right"] = "left"
    wrap: bool = True
    overflow: Literal["fold", "ellipsis"] = "fold"
    """How a word that is wider than the column is shown: on several lines, or cut."""


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    console: Console | None = None,
    plain_rows: Sequence[Sequence[str]] | None = None,
    min_widths: Sequence[int] = (),
    title: str | None = None,
    boxed: bool = True,
    section_ends: Collection[int] = (),
) -> None:
    """Print a table to a console.

    Args:
        columns: one per cell of a row.
        rows: the rows below the header.
        console: None stands for standard output.
        plain_rows: the rows of the plain lines. None stands for the header and ``rows``.
        min_widths: minimum widths of the first plain columns, in characters.
        title, boxed, section_ends: see :func:`rich_table`.
    """
    if console.is_terminal if console is not None else sys.stdout.isatty():
        from rich.console import Console  # rich is slow to import, and plain lines do not need it

        table = rich_table(columns, rows, title=title, boxed=boxed, section_ends=section_ends)
        (console or Console()).print(table)
        return
    if plain_rows is None:
        plain_rows = [[column.header for column in columns], *([_plain(cell) for cell in row] for row in rows)]
    for line in aligned_lines(plain_rows, min_widths):
        print_line(line, console)


def print_line(line: str, console: Console | None = None) -> None:
    """Print one line without markup, colours or line breaks. None as console stands for standard output."""
    if console is None:
        print(line)
    else:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def rich_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    title: str | None = None,
    boxed: bool = True,
    section_ends: Collection[int] = (),
) -> Table:
    """Return a rich table.

    Args:
        columns: one per cell of a row.
        rows: the rows below the header.
        title: the line above the table.
        boxed: whether the table has lines around the cells.
        section_ends: the 1-based numbers of the rows below which a line is drawn.
    """
    from rich.box import HEAVY_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else escape(title), box=HEAVY_HEAD if boxed else None)
    for column in columns:
        table.add_column(Text(column.header), justify=column.justify, no_wrap=not column.wrap, overflow=column.overflow)
    for number, row in enumerate(rows, start=1):
        table.add_row(*(_text(cell) for cell in row), end_section=number in section_ends)
    return table


def aligned_lines(rows: Sequence[Sequence[str]], min_widths: Sequence[int] = ()) -> list[str]:
    """Return one line per row, with columns of equal width and two spaces between them."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for position, width in enumerate(min_widths):
        widths[position] = max(widths[position], width)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else "".join(text for text, _ in cell)


def _text(cell: Cell) -> Text:
    from rich.text import Text

    return Text(cell) if isinstance(cell, str) else Text.assemble(*cell)
