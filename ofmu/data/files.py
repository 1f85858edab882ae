"""The user's own rows: JSONL, JSON, CSV or Parquet files with questions and answers, or with plain text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import ConfigError, DataError, nearest_name

EVALUATION_ROWS = 400
"""Most rows of an evaluation set drawn from the user's files, the number that TOFU scores."""

Record = dict[str, Any]


def load_files(config: DataConfig, seed: int) -> UnlearnData:
    """Load the files ``config.forget``, ``config.retain`` and, if given, ``config.holdout``.

    The evaluation sets are the forget and the retain rows, each a sample of at most 400 drawn by ``seed``.

    Raises:
        ConfigError: ``config.forget`` or ``config.retain`` is not given.
        DataError: a file is missing, malformed, or lacks a column.
    """
    if config.forget is None or config.retain is None:
        missing = "data.forget" if config.forget is None else "data.retain"
        raise ConfigError(f"data.source 'files' needs {missing}: name a JSONL, JSON, CSV or Parquet file")
    forget = read_rows(config.forget, config.columns)
    retain = read_rows(config.retain, config.columns)
    holdout = read_rows(config.holdout, config.columns) if config.holdout else None
    return UnlearnData(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", retain),
        holdout=None if holdout is None else RowSet("holdout", holdout),
        evaluation={
            "forget": RowSet("forget", _sample(forget, seed)),
            "retain": RowSet("retain", _sample(retain, seed)),
        },
    )


def read_rows(path: str | Path, columns: ColumnsConfig) -> tuple[Row, ...]:
    """Read a file's rows in order; the file's ending names its format.

    Raises:
        DataError: the file is missing, malformed, of an unknown format, or lacks a column.
    """
    source = Path(path).expanduser()
    records = read_records(source)
    return tuple(row_from_record(record, columns, str(path), number) for number, record in enumerate(records, start=1))


def read_records(path: Path) -> list[Record]:
    """Read a file as one mapping per row.

    Raises:
        DataError: the file is missing, malformed, or of an unknown format.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"The data file {path} has the unknown ending '{path.suffix}': use {', '.join(_READERS)}")
    if not path.is_file():
        raise DataError(f"There is no data file {path}: check the path")
    try:
        return reader(path)
    except OSError as error:
        raise DataError(f"The data file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The data file {path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error


def row_from_record(record: Mapping[str, Any], columns: ColumnsConfig, source: str, number: int) -> Row:
    """Make the row of a mapping; ``source`` and ``number`` (from 1) say in an error where it stands.

    Raises:
        DataError: a column is missing, or a cell is empty or no text.
    """

    def cell(name: str) -> str:
        return _text(record[name], name, source, number)

    if columns.question not in record and columns.text in record:
        return Row(question="", answer=_filled(cell(columns.text), columns.text, source, number))
    for role, name in (("question", columns.question), ("answer", columns.answer)):
        if name not in record:
            raise DataError(
                f"Row {number} of {source} has no column '{name}': set data.columns.{role}, or data.columns.text for "
                f"plain text; {nearest_name(name, map(str, record))}"
            )
    paraphrase = record.get(columns.paraphrased_answer)
    return Row(
        question=_filled(cell(columns.question), columns.question, source, number),
        answer=_filled(cell(columns.answer), columns.answer, source, number),
        paraphrased_answer=cell(columns.paraphrased_answer) if paraphrase else None,
        perturbed_answers=_texts(record.get(columns.perturbed_answer), columns.perturbed_answer, source, number),
        **_other_questions(record, source, number),
    )


def _other_questions(record: Mapping[str, Any], source: str, number: int) -> dict[str, Any]:
    """Return the variants for hard in-scope sets, which stand in columns of these names if anywhere."""
    wrong = "translated_perturbed_answers"
    names = ("paraphrased_question", "multi_hop_question", "translated_question", "translated_answer")
    found: dict[str, Any] = {name: _text(record[name], name, source, number) for name in names if record.get(name)}
    if ("translated_question" in found) != ("translated_answer" in found):
        raise DataError(
            f"Row {number} of {source} has only one of 'translated_question' and 'translated_answer': give both"
        )
    return found | {wrong: _texts(record.get(wrong), wrong, source, number)}


def _text(value: Any, name: str, source: str, number: int) -> str:
    if not isinstance(value, str):
        kind = "no value" if value is None else f"a {type(value).__name__} ({value!r:.40})"
        raise DataError(f"Row {number} of {source} has {kind} in column '{name}': write text there")
    return value


def _filled(text: str, name: str, source: str, number: int) -> str:
    if not text.strip():
        raise DataError(f"Row {number} of {source} has an empty '{name}': fill it in or remove the row")
    return text


def _texts(value: Any, name: str, source: str, number: int) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = [value]
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise DataError(f"Row {number} of {source} has {values!r:.40} in column '{name}': write a list of texts there")
    return tuple(_text(item, name, source, number) for item in values)


def _read_json(path: Path) -> list[Record]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_json_lines(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"The data file {path} is not valid JSON in line {error.lineno}: {error.msg}") from error
    return [_mapping(item, path, number) for number, item in enumerate(content, start=1)]


def _read_json_lines(path: Path) -> list[Record]:
    records = []
    # Not splitlines(), which would also cut inside a text at U+2028.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_mapping(json.loads(line), path, number))
        except json.JSONDecodeError as error:
            raise DataError(
                f"Line {number} of {path} is not valid JSON ({error.msg}): write one JSON object a line"
            ) from error
    return records


def _mapping(item: Any, path: Path, number: int) -> Record:
    if not isinstance(item, dict):
        raise DataError(f"Row {number} of {path} is {item!r:.40} and no JSON object: write columns with their names")
    return item


def _read_csv(path: Path) -> list[Record]:
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        return []
    except pd.errors.ParserError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"The data file {path} is not valid CSV ({reason}): quote cells that hold commas") from error
    return [{str(name): value for name, value in record.items()} for record in frame.to_dict("records")]


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        records: list[Record] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"The data file {path} is not valid Parquet ({reason}): write it again") from error
    return records


_READERS: Mapping[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _sample(rows: tuple[Row, ...], seed: int) -> tuple[Row, ...]:
    if len(rows) <= EVALUATION_ROWS:
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), EVALUATION_ROWS))
    return tuple(rows[index] for index in chosen)
