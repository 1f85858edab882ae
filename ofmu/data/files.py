"""The user's own rows: JSONL, JSON, CSV or Parquet files with questions and answers, or with plain text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ofmu.data.column_hint import column_hint
from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.csv_file import check_unique_columns, read_csv
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.data.sampler import sample_in_order
from ofmu.data.text_lists import looks_like_list, parse_text_list
from ofmu.errors import ConfigError, DataError
from ofmu.io.files import check_regular, expanded, looked_for
from ofmu.io.text import HALF_CHARACTER, parse_json

MAX_EVALUATION_ROWS = 400
"""Upper bound on the rows of an evaluation set from the user's files. TOFU scores as many."""

_MAX_CHARACTERS = 200_000
"""Bound on a question, an answer or a variant. Every one is tokenised whole."""

_ALTERNATE, _ENTITY = "alternate_answer", "entity"
_IN_SCOPE_TEXTS = ("paraphrased_question", "multi_hop_question", "translated_question", "translated_answer")

Record = dict[str, Any]
"""One row of a file, by column."""


def load_files(config: DataConfig, seed: int) -> UnlearnData:
    """Load the files ``config.forget``, ``config.retain`` and, if given, ``config.holdout``.

    The evaluation sets are samples of at most 400 forget rows and 400 retain rows, drawn by ``seed``.

    Raises:
        ConfigError: ``config.forget`` or ``config.retain`` is not given.
        DataError: a file is missing or malformed, or lacks a column.
    """
    if config.forget is None or config.retain is None:
        missing = "data.forget" if config.forget is None else "data.retain"
        raise ConfigError(f"data.source 'files' needs {missing}: name a JSONL, JSON, CSV or Parquet file")
    forget = read_rows(config.forget, config.columns)
    retain = read_rows(config.retain, config.columns)
    holdout = read_rows(config.holdout, config.columns) if config.holdout else None

    def evaluated(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return sample_in_order(rows, MAX_EVALUATION_ROWS, random.Random(seed))

    return UnlearnData(
        forget=RowSet("forget", forget, file=config.forget),
        retain=RowSet("retain", retain, file=config.retain),
        holdout=None if holdout is None else RowSet("holdout", holdout, file=str(config.holdout)),
        evaluation={"forget": RowSet("forget", evaluated(forget)), "retain": RowSet("retain", evaluated(retain))},
    )


def read_rows(path: str | Path, columns: ColumnsConfig) -> tuple[Row, ...]:
    """Read a file's rows in order. The suffix of the file's name decides the format.

    Raises:
        DataError: the file is missing or malformed, has an unknown format, or lacks a column.
    """
    file = expanded(path)
    rows = []
    for number, record in enumerate(read_records(file), start=1):
        if file.suffix.lower() == ".csv":
            _check_single_texts(record, columns, f"Row {number} of {path}")
        rows.append(row_from_record(record, columns, str(path), number))
    return tuple(rows)


def read_records(path: Path) -> list[Record]:
    """Read a file as one record per row.

    Raises:
        DataError: the file is missing or malformed, or has an unknown format.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"The data file {path} has the unknown suffix '{path.suffix}': use {', '.join(_READERS)}")
    check_data_file(path)
    try:
        return reader(path)
    except OSError as error:
        raise DataError(f"The data file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The data file {path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error


def check_data_file(path: Path) -> None:
    """Check that a path leads to an ordinary file that can be opened.

    Raises:
        DataError: there is no file, or it cannot be read.
    """
    if not path.exists():
        raise DataError(f"There is no data file {looked_for(path)}: check the path")
    try:
        check_regular(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"The data file {path} cannot be read: {error.strerror or error}") from error


def row_from_record(record: Mapping[str, Any], columns: ColumnsConfig, source: str, number: int) -> Row:
    """Return the row of a record.

    Args:
        record: the record.
        columns: names of the record's columns.
        source: name of the file or data set, for errors.
        number: number of the record in its source, from 1, for errors.

    Raises:
        DataError: a column is missing, or a cell is empty or holds no text.
    """
    where = f"Row {number} of {source}"
    if columns.question not in record and columns.text in record:
        return Row(question="", answer=_non_empty_text(record, columns.text, where))
    for key, name in (("question", columns.question), ("answer", columns.answer)):
        if name not in record:
            raise DataError(f"{where} has no column '{name}': {column_hint(key, name, record, columns)}")
    paraphrase = columns.paraphrased_answer
    return Row(
        question=_short_text(_non_empty_text(record, columns.question, where), columns.question, where),
        answer=_short_text(_non_empty_text(record, columns.answer, where), columns.answer, where),
        paraphrased_answer=_short_text(record[paraphrase], paraphrase, where) if record.get(paraphrase) else None,
        perturbed_answers=_texts(record.get(columns.perturbed_answer), columns.perturbed_answer, where),
        **_in_scope_variants(record, where),
        alternate_answer=_alternate(record, columns, where),
        entity=_entity(record, columns, where),
    )


def _alternate(record: Mapping[str, Any], columns: ColumnsConfig, where: str) -> str | None:
    """Return the answer that AltPO trains in place of the answer. The column has the name of the field."""
    if not record.get(_ALTERNATE):
        return None
    alternate = _short_text(record[_ALTERNATE], _ALTERNATE, where)
    if alternate.split() == str(record[columns.answer]).split():
        raise DataError(f"{where} has its answer as '{_ALTERNATE}' too: write an answer with other facts there")
    return alternate


def _entity(record: Mapping[str, Any], columns: ColumnsConfig, where: str) -> str | None:
    """Return the part of the answer that states the fact. The column has the name of the field."""
    if not record.get(_ENTITY):
        return None
    entity = _non_empty_text(record, _ENTITY, where)
    if entity not in str(record[columns.answer]):
        raise DataError(
            f"{where} has a text in column '{_ENTITY}' which its answer does not contain: copy it from the answer"
        )
    return entity


def _check_single_texts(record: Mapping[str, Any], columns: ColumnsConfig, where: str) -> None:
    """Refuse lists where one text belongs. CSV has no lists, so a list in a cell is a text here."""
    own = (columns.question, columns.answer, columns.paraphrased_answer, columns.text)
    for name in (*own, _ALTERNATE, _ENTITY, *_IN_SCOPE_TEXTS):
        value = record.get(name)
        if value and looks_like_list(value) and parse_text_list(value) is not None:
            raise DataError(
                f"{where} has a list in column '{name}', where one text belongs: write one text there, "
                "or write the rows as JSONL if these characters are the text"
            )


def _in_scope_variants(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of :class:`Row` for the in-scope sets. The columns have the names of the fields."""
    wrong = "translated_perturbed_answers"
    variants: dict[str, Any] = {
        name: _short_text(record[name], name, where) for name in _IN_SCOPE_TEXTS if record.get(name)
    }
    if ("translated_question" in variants) != ("translated_answer" in variants):
        raise DataError(f"{where} has only one of 'translated_question' and 'translated_answer': give both")
    return variants | {wrong: _texts(record.get(wrong), wrong, where)}


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        content = "no value" if value is None else f"a value of type {type(value).__name__}"
        raise DataError(f"{where} has {content} in column '{name}': write text there")
    if "\0" in value:
        raise DataError(f"{where} has a NUL character in column '{name}', which is no text: remove it")
    return value


def _short_text(value: Any, name: str, where: str) -> str:
    """Return a question, an answer or a variant of one. Only plain text may be a whole book."""
    text = _text(value, name, where)
    if len(text) > _MAX_CHARACTERS:
        raise DataError(
            f"{where} has {len(text):,} characters in column '{name}', and at most {_MAX_CHARACTERS:,} are read: "
            "shorten it, or give long documents in the column of data.columns.text"
        )
    return text


def _non_empty_text(record: Mapping[str, Any], name: str, where: str) -> str:
    text = _text(record[name], name, where)
    if not text.strip():
        raise DataError(f"{where} has an empty '{name}': fill it in or remove the row")
    return text


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """Return the texts of a cell: a list, a list that was written as text, or one text."""
    if value is None or value == "":
        return ()
    values = value
    if isinstance(value, str):
        values = parse_text_list(value) if looks_like_list(value) else [value]
        if values is None:
            raise DataError(f"{where} has a list in column '{name}' that cannot be read: write a JSON list of texts")
    if not isinstance(values, list):
        raise DataError(
            f"{where} has a value of type {type(values).__name__} in column '{name}': write a list of texts there"
        )
    return tuple(_short_text(item, name, where) for item in values)


def _read_json(path: Path) -> list[Record]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_json_lines(path)
    try:
        content = parse_json(text, _unique_names)
    except json.JSONDecodeError as error:
        raise DataError(f"The data file {path} is not valid JSON in line {error.lineno}: {error.msg}") from error
    return [_json_object(item, path, number) for number, item in enumerate(content, start=1)]


def _read_json_lines(path: Path) -> list[Record]:
    records = []
    # splitlines() would also split a text at U+2028.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_json_object(parse_json(line, _unique_names), path, number))
        except json.JSONDecodeError as error:
            raise DataError(
                f"Line {number} of {path} is not valid JSON ({error.msg}): write one JSON object per line"
            ) from error
    return records


class _RepeatedName(dict[str, Any]):
    """An object of JSON in which a name stands twice. ``name`` is the first such name."""

    name = ""


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. json itself would keep the last of two values without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found = _RepeatedName(found)
        found.name = next(name for name in names if names.count(name) > 1)
    return found


def _json_object(item: Any, path: Path, number: int) -> Record:
    if not isinstance(item, dict):
        raise DataError(
            f"Row {number} of {path} is of type {type(item).__name__} and no JSON object: write an object with columns"
        )
    if isinstance(item, _RepeatedName):
        raise DataError(f"Row {number} of {path} has the column '{item.name}' twice: keep one of them")
    if half := HALF_CHARACTER.search(json.dumps(item, ensure_ascii=False)):
        raise DataError(
            f"Row {number} of {path} has the half character \\u{ord(half[0]):04x}, which no text can hold: write "
            "both halves of the character, or remove it"
        )
    return item


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        check_unique_columns(table.column_names, path)
        return _python_values(table, path)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"The data file {path} is not valid Parquet ({reason}): write it again") from error


def _python_values(table: Any, path: Path) -> list[Record]:
    import pyarrow

    columns = {}
    for name in table.column_names:
        try:
            columns[name] = table[name].to_pylist()
        except pyarrow.ArrowException:
            raise
        except (OverflowError, ValueError) as error:
            raise DataError(
                f"The column '{name}' of {path} holds a date, a time or a duration outside of Python's range "
                f"({error}): write the column as text, or leave it out"
            ) from error
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


_READERS: Mapping[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": read_csv,
    ".parquet": _read_parquet,
}
