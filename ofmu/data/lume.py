"""LUME, the benchmark of SemEval-2025 task 4 (Ramakrishna et al., arXiv 2502.15097), from its two files.

Each of its three tasks has sentence completions, whose text should not be regurgitated, and questions.
"""

from __future__ import annotations

from pathlib import Path

from ofmu.data.config import DataConfig
from ofmu.data.files import Record, read_records
from ofmu.data.rows import Prompting, Row, RowSet, UnlearnData, row_key
from ofmu.errors import ConfigError, DataError, nearest_name
from ofmu.io.files import expanded, looked_for

COMPLETION, QUESTION = "regurgitation", "knowledge"
_KINDS = {"sc": COMPLETION, "qa": QUESTION}
"""What a row tests, by the letters before the last character of its id, as the official script reads ids."""
_NEW_TOKENS = 256
_COLUMNS = ("id", "input", "output", "task")


def load_lume(config: DataConfig) -> UnlearnData:
    """Load ``forget.jsonl`` and ``retain.jsonl`` of the directory ``config.path``.

    The prompts of the evaluation are the inputs alone, as in the official script.

    Raises:
        ConfigError: ``data.path`` is missing.
        DataError: a file is missing, or a row lacks a column.
    """
    if config.path is None:
        raise ConfigError("data.source 'lume' needs data.path: name the directory of forget.jsonl and retain.jsonl")
    folder = expanded(config.path)
    if not folder.is_dir():
        raise DataError(f"There is no LUME directory {looked_for(config.path)}: name the folder of forget.jsonl")
    prompting = Prompting("{question}", _NEW_TOKENS)
    sets = {name: _row_set(name, folder / f"{name}.jsonl", prompting) for name in ("forget", "retain")}
    return UnlearnData(
        forget=RowSet("forget", sets["forget"].rows),
        retain=RowSet("retain", sets["retain"].rows),
        holdout=None,
        evaluation=sets,
    )


def _row_set(name: str, path: Path, prompting: Prompting) -> RowSet:
    rows, parts = [], {}
    for number, record in enumerate(read_records(path), start=1):
        row, part = _row(record, f"Row {number} of {path}")
        rows.append(row)
        if part is not None:
            parts[row_key(row)] = part
    return RowSet(name, tuple(rows), prompting, parts)


def _row(record: Record, where: str) -> tuple[Row, str | None]:
    """Return a row, and its part, such as ``task1_knowledge``; None for an id that the official script leaves out."""
    for column in _COLUMNS:
        if column not in record:
            raise DataError(f"{where} has no column '{column}': {nearest_name(column, map(str, record))}")
        if not isinstance(record[column], str) or not record[column].strip():
            raise DataError(f"{where} has no text in column '{column}': write text there")
    kind = _KINDS.get(record["id"][:-1][-2:])
    part = None if kind is None else f"{record['task'].lower()}_{kind}"
    return Row(question=record["input"], answer=record["output"]), part
