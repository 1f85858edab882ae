"""Whatever pandas, datasets, Python or a spreadsheet writes of a table is read back equal, or refused with its row."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ofmu.data.config import ColumnsConfig
from ofmu.data.files import read_records, read_rows
from ofmu.errors import DataError

Table = list[dict[str, Any]]

TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.text("a,;\"'\\ \t\n\r\0[]{}():=é\u2028\u0085\ufeff1.-", max_size=12),
    st.sampled_from(
        [
            "",
            "NA",
            "null",
            "None",
            "nan",
            "1",
            "1.0",
            "01",
            "true",
            "2024-01-01",
            "=1+1",
            "['a', 'b']",
            '["a"]',
            "\ufeffx",
        ]
    ),
)
QUESTIONS = st.lists(st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}), min_size=1, max_size=4)
PLAIN = st.lists(st.fixed_dictionaries({"text": TEXTS}), min_size=1, max_size=4)
LISTS = st.lists(
    st.fixed_dictionaries(
        {"question": st.just("q"), "answer": st.just("a"), "perturbed_answer": st.lists(TEXTS, min_size=1, max_size=3)}
    ),
    min_size=1,
    max_size=3,
)


def by_csv_module(**dialect: Any) -> Callable[[Table, Path], None]:
    def write(table: Table, path: Path) -> None:
        with path.open("w", encoding=dialect.get("encoding", "utf-8"), newline="") as stream:
            options = {key: value for key, value in dialect.items() if key != "encoding"}
            writer = csv.DictWriter(stream, list(table[0]), **options)
            writer.writeheader()
            writer.writerows(table)

    return write


def by_json_lines(ascii_only: bool, ends: str = "\n") -> Callable[[Table, Path], None]:
    def write(table: Table, path: Path) -> None:
        lines = [json.dumps(row, ensure_ascii=ascii_only) + ends for row in table]
        path.write_bytes("".join(lines).encode())

    return write


CSV: dict[str, Callable[[Table, Path], Any]] = {
    "pandas": lambda table, path: pd.DataFrame(table).to_csv(path, index=False),
    "pandas with an index": lambda table, path: pd.DataFrame(table).to_csv(path),
    "pandas, all quoted": lambda table, path: pd.DataFrame(table).to_csv(path, index=False, quoting=csv.QUOTE_ALL),
    "pandas with a byte order mark": lambda table, path: pd.DataFrame(table).to_csv(
        path, index=False, encoding="utf-8-sig"
    ),
    "datasets": lambda table, path: datasets.Dataset.from_list(table).to_csv(path, index=False),
    "Python": by_csv_module(),
    "Python, in the way of Unix": by_csv_module(dialect="unix"),
    "a spreadsheet": by_csv_module(dialect="excel", encoding="utf-8-sig"),
}
WHOLE: dict[str, tuple[str, Callable[[Table, Path], Any]]] = {
    "pandas JSONL": (
        ".jsonl",
        lambda table, path: pd.DataFrame(table).to_json(path, orient="records", lines=True, force_ascii=False),
    ),
    "pandas JSON": (".json", lambda table, path: pd.DataFrame(table).to_json(path, orient="records")),
    "datasets JSONL": (".jsonl", lambda table, path: datasets.Dataset.from_list(table).to_json(path)),
    "Python JSONL": (".jsonl", by_json_lines(False)),
    "Python JSONL in ASCII": (".jsonl", by_json_lines(True, "\r\n")),
    "pandas Parquet": (".parquet", lambda table, path: pd.DataFrame(table).to_parquet(path)),
    "datasets Parquet": (".parquet", lambda table, path: datasets.Dataset.from_list(table).to_parquet(path)),
}


def read(writer: Callable[[Table, Path], Any], suffix: str, table: Table) -> Any:
    """Return the rows of the file that ``writer`` makes, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        writer(table, path)
        try:
            rows = read_rows(path, ColumnsConfig())
        except DataError as error:
            return str(error).replace(str(path), "FILE")
    return [(row.question, row.answer, row.perturbed_answers) for row in rows]


def expected(table: Table) -> list[tuple[str, str, tuple[str, ...]]]:
    return [
        (row.get("question", ""), row.get("answer", row.get("text")), tuple(row.get("perturbed_answer", ())))
        for row in table
    ]


def refused_for_a_reason(found: Any, table: Table) -> bool:
    """Return whether the error names a row, and the table holds what may be refused."""
    texts = [text for row in table for text in row.values() if isinstance(text, str)]
    unusual = any(not text.strip() or "\0" in text or "\r" in text or text.lstrip()[:1] in "[({" for text in texts)
    return isinstance(found, str) and unusual and ("Row " in found or " in line " in found)


SETTINGS = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], deadline=None)
EDGE = [{"question": 'a,"b"\nc', "answer": "d\r\ne"}, {"question": "NA", "answer": "1.0"}]
RETURNS = [{"question": "a\rb", "answer": "c"}, {"question": "d", "answer": "e\r"}]


@pytest.mark.parametrize("name", list(CSV))
@pytest.mark.slow
@SETTINGS
@given(st.one_of(QUESTIONS, PLAIN))
@example(EDGE)
@example(RETURNS)
@example([{"answer": "0", "question": "0\r"}])
@example([{"text": "a\rb"}, {"text": "c"}])
@example([{"text": "\r"}, {"text": "c\rd\re"}])
@example([{"text": "\r"}])
@example([{"question": "\0", "answer": "a"}])
def test_csv_is_read_back_equal_or_refused(name: str, table: Table) -> None:
    found = read(CSV[name], ".csv", table)
    shorter = without_unquoted_returns(table)
    # A file of one column holds such a row as a blank line, and a blank line is no row.
    alternatives = (expected(table), expected(shorter), expected([row for row in shorter if any(row.values())]))
    assert found in alternatives or refused_for_a_reason(found, table), (found, table)


def without_unquoted_returns(table: Table) -> Table:
    """Return the table without a carriage return at the end of a row.

    pandas quotes no cell for a carriage return. At the end of a row, the file then has the line end of Windows.
    """
    last = list(table[0])[-1]
    return [row | {last: row[last].removesuffix("\r")} for row in table]


@pytest.mark.parametrize("name", list(WHOLE))
@pytest.mark.slow
@SETTINGS
@given(st.one_of(QUESTIONS, PLAIN, LISTS))
@example(EDGE)
@example(RETURNS)
def test_json_and_parquet_are_read_back_equal_or_refused(name: str, table: Table) -> None:
    suffix, writer = WHOLE[name]
    found = read(writer, suffix, table)
    texts = [text for row in table for text in row.values() if isinstance(text, str)]
    nul = any("\0" in str(text) for row in table for text in (*row.values(), *row.get("perturbed_answer", ())))
    empty = any(not text.strip() for text in texts)
    assert found == expected(table) or ((nul or empty) and "Row " in found), (found, table)


@pytest.mark.parametrize("name", ["pandas", "datasets", "Python"])
@pytest.mark.slow
@SETTINGS
@given(LISTS)
@example([{"question": "q", "answer": "a", "perturbed_answer": ["\U0001dab0"]}])
@example([{"question": "q", "answer": "a", "perturbed_answer": ["\x80", "'\"\\U0041"]}])
def test_lists_in_csv_are_read_back_equal_or_refused(name: str, table: Table) -> None:
    found = read(CSV[name], ".csv", table)
    assert found == expected(table) or (isinstance(found, str) and "Row " in found), (found, table)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("question,answer\nq1,a1,\nq2,a2,\n", "Row 1 of FILE has 3 cells, and the header has 2"),
        ("question,answer\nq1,a1\nq2\n", "Row 2 of FILE has 1 cells, and the header has 2"),
        ("question,answer\nq1,a1\nq2,a,2\n", "Row 2 of FILE has 3 cells"),
        ('question,answer\nq1,a1\nq2,"a2\n', "Row 2 of FILE is not valid CSV (unexpected end of data)"),
        ('question,answer\nq1,"a"1\n', "Row 1 of FILE is not valid CSV"),
        ("question,answer\nq1,a1\nq\0,a2\n", "holds a NUL byte in line 3"),
        ("question,answer,answer\nq,a,b\n", "has the column 'answer' twice"),
        ("question;answer\nq;a\n", "has no column 'question'"),
        ("question,answer\nq,a\n".encode("utf-16-le").decode("latin-1"), "holds a NUL byte in line 1"),
    ],
)
def test_a_damaged_csv_file_is_refused_with_its_row(content: str, words: str) -> None:
    found = read(lambda table, path: path.write_bytes(content.encode("latin-1")), ".csv", [])
    assert isinstance(found, str)
    assert words in found


@pytest.mark.parametrize("content", ["", "\n", "question,answer\n", "\ufeffquestion,answer\n\n\n"])
def test_a_csv_file_without_rows_has_no_rows(content: str) -> None:
    assert read(lambda table, path: path.write_text(content, newline=""), ".csv", []) == []


def test_carriage_returns_alone_end_lines_where_nothing_else_does() -> None:
    content = "question,answer\rq1,a1\rq2,a2\r"
    assert read(lambda table, path: path.write_text(content, newline=""), ".csv", []) == [
        ("q1", "a1", ()),
        ("q2", "a2", ()),
    ]


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([5 * 10**6], pyarrow.date32()),
        pyarrow.array([-(10**15)], pyarrow.timestamp("ms")),
        pyarrow.array([10**15], pyarrow.duration("s")),
    ],
    ids=lambda values: str(values.type),
)
def test_a_date_that_python_cannot_hold_is_one_sentence(values: pyarrow.Array, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["Q?"], "answer": ["A."], "when": values}), path)
    with pytest.raises(
        DataError, match=r"The column 'when' of .* holds a date, a time or a duration outside of Python's"
    ):
        read_records(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_cell_of_megabytes_is_refused_as_an_answer_and_read_as_a_text(suffix: str) -> None:
    cell = "a" * 3_000_000
    writers = {
        ".csv": CSV["pandas"], ".jsonl": WHOLE["Python JSONL"][1], ".parquet": WHOLE["pandas Parquet"][1],
    }  # fmt: skip
    for column in ("question", "answer"):
        found = read(writers[suffix], suffix, [{"question": "q", "answer": "a"} | {column: cell}])
        assert f"Row 1 of FILE has 3,000,000 characters in column '{column}'" in found
    found = read(writers[suffix], suffix, [{"question": "q", "answer": "a", "perturbed_answer": [cell]}])
    assert "characters in column 'perturbed_answer'" in found
    assert read(writers[suffix], suffix, [{"text": cell}]) == [("", cell, ())]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", "[" * 100_000),
        (".json", "[" * 100_000),
        (".json", '[{"question": ' + "[" * 100_000),
        (".jsonl", '{"question": ' + "9" * 5000 + ', "answer": "a"}'),
        (".json", '[{"question": ' + "9" * 5000 + ', "answer": "a"}]'),
    ],
)
def test_hostile_json_is_one_sentence(suffix: str, content: str) -> None:
    found = read(lambda table, path: path.write_text(content), suffix, [])
    assert isinstance(found, str)
    assert "not valid JSON" in found
    assert "line 1" in found.lower()
