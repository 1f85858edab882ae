"""The TOFU benchmark (arXiv 2401.06121) from the hub or from a directory of its JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.files import read_records, row_from_record
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError
from ofmu.models.hub import hub_reason

HUB_NAME = "locuslab/TOFU"
ROWS_PER_AUTHOR = 20
GENERAL_KNOWLEDGE = ("real_authors", "world_facts")

_RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}

_Reader = Callable[[str], tuple[Row, ...]]


def load_tofu(config: DataConfig) -> UnlearnData:
    """Load a published split, or the ``config.authors`` authors of it that make a small problem of the same shape.

    With ``authors`` set, a tenth of them (at least one) come from the end of the forget split, the others from the
    start of the retain split, whose paraphrases are published; the next authors of the retain split, as many as are
    forgotten, become the holdout rows, since no model is trained on them.

    Raises:
        DataError: a file is missing or malformed, or ``authors`` is more than the split has.
    """
    read = _reader(config.path or HUB_NAME)
    forget, retain = read(config.split), read(_RETAIN_OF[config.split])
    evaluated, paraphrased = read(f"{config.split}_perturbed"), read("retain_perturbed")
    holdout: tuple[Row, ...] = ()
    if config.authors is not None:
        forgotten, kept = _author_counts(config, len(forget), len(retain))
        forget, evaluated = forget[-forgotten:], evaluated[-forgotten:]
        retain, holdout = retain[:kept], retain[kept : kept + forgotten]
        questions = {row.question for row in retain}
        paraphrased = tuple(row for row in paraphrased if row.question in questions)
    general = {name: read(f"{name}_perturbed") for name in GENERAL_KNOWLEDGE}
    if config.train_on_general_knowledge:
        retain = (*retain, *(Row(question=r.question, answer=r.answer) for rows in general.values() for r in rows))
    sets: Mapping[str, tuple[Row, ...]] = {"forget": evaluated, "retain": paraphrased, **general}
    return UnlearnData(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", retain),
        holdout=RowSet("holdout", holdout) if holdout else None,
        evaluation={name: RowSet(name, rows) for name, rows in sets.items()},
    )


def _author_counts(config: DataConfig, forget_rows: int, retain_rows: int) -> tuple[int, int]:
    """Return the numbers of rows to forget and to retain."""
    authors = config.authors or 0
    forgotten = max(1, authors // 10)
    kept = authors - forgotten
    if forgotten * ROWS_PER_AUTHOR > forget_rows:
        raise DataError(
            f"A tenth of data.authors {authors} is {forgotten} authors to forget, and {config.split} has "
            f"{forget_rows // ROWS_PER_AUTHOR}: lower data.authors, or set data.split to forget10"
        )
    if kept * ROWS_PER_AUTHOR > retain_rows:
        raise DataError(
            f"data.authors {authors} asks for {kept} authors to retain, and {_RETAIN_OF[config.split]} has "
            f"{retain_rows // ROWS_PER_AUTHOR}: lower data.authors"
        )
    return forgotten * ROWS_PER_AUTHOR, kept * ROWS_PER_AUTHOR


def looks_like_hub_id(source: str) -> bool:
    """Return whether a source has the form ``owner/name`` and is no directory of this machine."""
    folder = Path(source).expanduser()
    return not (folder.is_dir() or folder.is_absolute() or source.startswith((".", "~"))) and source.count("/") == 1


def _reader(source: str) -> _Reader:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return lambda name: _rows(read_records(folder / f"{name}.json"), f"{folder / name}.json")
    if not looks_like_hub_id(source):
        raise DataError(f"There is no TOFU directory {source}: set data.path to the folder that holds forget10.json")
    return lambda name: _rows(hub_records(source, name), f"{source} ({name})")


def hub_records(source: str, name: str) -> list[dict[str, Any]]:
    """Read one config of a data set on the hub, with its columns as they are.

    Raises:
        DataError: the hub does not answer, or has no such data set or config.
    """
    # Slow to import, and needless for a local directory.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return list(load_dataset(source, name, split="train"))
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"The hub data set '{source}' ({name}) cannot be loaded, since {hub_reason(error)}; or set data.path to a "
            "local directory of its JSON files"
        ) from error


def _rows(records: list[dict[str, Any]], source: str) -> tuple[Row, ...]:
    columns = ColumnsConfig()
    return tuple(row_from_record(record, columns, source, number) for number, record in enumerate(records, start=1))
