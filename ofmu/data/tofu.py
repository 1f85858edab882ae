"""The TOFU benchmark (arXiv 2401.06121) from the hub, or from a directory of its JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.files import read_records, row_from_record
from ofmu.data.hub import load_hub_split, local_copy
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError
from ofmu.io.files import expanded, looked_for
from ofmu.models.hub import looks_like_hub_id

HUB_NAME = "locuslab/TOFU"
ROWS_PER_AUTHOR = 20
GENERAL_KNOWLEDGE = ("real_authors", "world_facts")

_RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}

_ReadPart = Callable[[str], tuple[Row, ...]]
"""Returns the rows of a part of TOFU, such as ``forget10``."""


def load_tofu(config: DataConfig) -> UnlearnData:
    """Load a published split, or ``config.authors`` of its authors.

    With ``authors``, a tenth of them, at least one, come from the end of the forget split. The others come from the
    start of the retain split, since TOFU publishes paraphrases of these rows only. The next authors of the retain split
    become the holdout rows: as many as are forgotten. No model is trained on them.

    Raises:
        DataError: a file is missing or malformed, or ``authors`` is more than the split has.
    """
    read = _part_reader(config.path or HUB_NAME)
    forget, retain = read(config.split), read(_RETAIN_OF[config.split])
    forget_scored, retain_scored = read(f"{config.split}_perturbed"), read("retain_perturbed")
    holdout: tuple[Row, ...] = ()
    if config.authors is not None:
        forget_count, retain_count = _row_counts(config.authors, config.split, len(forget), len(retain))
        forget, forget_scored = forget[-forget_count:], forget_scored[-forget_count:]
        retain, holdout = retain[:retain_count], retain[retain_count : retain_count + forget_count]
        questions = {row.question for row in retain}
        retain_scored = tuple(row for row in retain_scored if row.question in questions)
    general = {name: read(f"{name}_perturbed") for name in GENERAL_KNOWLEDGE}
    if config.train_on_general_knowledge:
        retain = (*retain, *(Row(question=r.question, answer=r.answer) for rows in general.values() for r in rows))
    sets: Mapping[str, tuple[Row, ...]] = {"forget": forget_scored, "retain": retain_scored, **general}
    return UnlearnData(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", retain),
        holdout=RowSet("holdout", holdout) if holdout else None,
        evaluation={name: RowSet(name, rows) for name, rows in sets.items()},
    )


def _row_counts(authors: int, split: str, forget_rows: int, retain_rows: int) -> tuple[int, int]:
    """Return the number of rows to forget and of rows to retain."""
    forget_authors = max(1, authors // 10)
    retain_authors = authors - forget_authors
    if forget_authors * ROWS_PER_AUTHOR > forget_rows:
        raise DataError(
            f"A tenth of data.authors {authors} is {forget_authors} authors to forget, and {split} has "
            f"{forget_rows // ROWS_PER_AUTHOR}: lower data.authors, or set data.split to forget10"
        )
    if retain_authors * ROWS_PER_AUTHOR > retain_rows:
        raise DataError(
            f"data.authors {authors} needs {retain_authors} authors to retain, and {_RETAIN_OF[split]} has "
            f"{retain_rows // ROWS_PER_AUTHOR}: lower data.authors"
        )
    return forget_authors * ROWS_PER_AUTHOR, retain_authors * ROWS_PER_AUTHOR


def _part_reader(source: str) -> _ReadPart:
    folder = expanded(source)
    if folder.is_dir():
        return lambda name: _rows(read_records(folder / f"{name}.json"), f"{folder / name}.json")
    if not looks_like_hub_id(source):
        raise DataError(
            f"There is no TOFU directory {looked_for(source)}: set data.path to the folder that holds forget10.json"
        )
    return lambda name: _rows(hub_records(source, name), f"{source} ({name})")


def hub_records(source: str, part: str) -> list[dict[str, Any]]:
    """Return the records of a part of TOFU on the hub.

    Raises:
        DataError: the hub cannot be reached, or has no such data set or part.
    """
    return list(load_hub_split(source, "train", subset=part, instead=local_copy("JSON")))


def _rows(records: list[dict[str, Any]], source: str) -> tuple[Row, ...]:
    columns = ColumnsConfig()
    return tuple(row_from_record(record, columns, source, number) for number, record in enumerate(records, start=1))
