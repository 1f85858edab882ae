from __future__ import annotations

import io

from rich.console import Console

from ofmu.io.console_table import Column, aligned_lines, print_table, rich_table

COLUMNS = (Column("name"), Column("value", justify="right"))


def printed(*rows: tuple[object, ...], terminal: bool, **options: object) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=60, force_terminal=terminal, color_system="standard" if terminal else None)
    print_table(COLUMNS, rows, console=console, **options)
    return stream.getvalue()


def test_columns_are_aligned_and_lines_have_no_trailing_spaces() -> None:
    assert aligned_lines([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]
    assert aligned_lines([("ok", "disk")], min_widths=(4,)) == ["ok    disk"]


def test_a_pipe_gets_plain_lines_that_no_width_folds() -> None:
    assert printed(("x" * 70, "1"), terminal=False).splitlines() == [f"name{' ' * 66}  value", f"{'x' * 70}  1"]


def test_plain_rows_replace_header_and_rows() -> None:
    assert printed(("a", "1"), terminal=False, plain_rows=[("b", "2")]) == "b  2\n"


def test_markup_is_shown_as_text_and_styles_are_applied() -> None:
    row = ("[red]", (("1", "bold"), (" [x]", "")))
    assert printed(row, terminal=False).splitlines()[1] == "[red]  1 [x]"
    shown = printed(row, terminal=True, title="[t]")
    assert "[red]" in shown
    assert "[t]" in shown
    assert "\x1b[1m1\x1b[0m [x]" in shown


def test_a_line_is_drawn_below_the_end_of_a_section() -> None:
    table = rich_table(COLUMNS, [("a", "1"), ("b", "2")], section_ends={1})
    assert [row.end_section for row in table.rows] == [True, False]


def test_without_a_console_standard_output_decides(capsys, monkeypatch) -> None:
    print_table(COLUMNS, [("a", "1")])
    assert capsys.readouterr().out == "name  value\na     1\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(COLUMNS, [("a", "1")])
    assert "━" in capsys.readouterr().out
