"""The rows of earlier requests, as files that the next request reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ofmu.data.config import ColumnsConfig
from ofmu.data.files import read_rows
from ofmu.data.records import json_lines
from ofmu.data.rows import Row, RowSet
from ofmu.errors import RunError
from ofmu.io.files import write_json, write_text
from ofmu.run_files import read_stored, stored_values

_INDEX = "earlier.json"
_SETS = ("forget", "left_out")


@dataclass(frozen=True, kw_only=True)
class EarlierRows:
    """The rows of one earlier request."""

    id: str
    """The request's name."""
    forget: tuple[Row, ...]
    left_out: tuple[Row, ...] = ()
    """Rows that the request neither forgot nor retained, since they may be about the same or say nearly the same."""
    person: str | None = None
    """The person whom the request named."""
    scoring: Mapping[str, Any] = field(default_factory=dict)
    """How the request scored its forget rows: see :func:`ofmu.chain.scoring.scoring_of`."""


def write_earlier(folder: Path, requests: Sequence[EarlierRows]) -> None:
    """Write the rows of earlier requests into a folder that exists.

    Raises:
        StorageError: the disk refuses.
    """
    index = []
    for number, request in enumerate(requests, start=1):
        sets = {name: RowSet(name, getattr(request, name)) for name in _SETS}
        for name, rows in sets.items():
            write_text(_file(folder, number, name), json_lines(rows.rows))
        index.append(
            {
                "id": request.id,
                "person": request.person,
                "scoring": dict(request.scoring),
                "hashes": {name: rows.content_hash for name, rows in sets.items()},
            }
        )
    write_json(folder / _INDEX, {"requests": index})


def read_earlier_rows(folder: Path) -> tuple[EarlierRows, ...]:
    """Return the rows that :func:`write_earlier` wrote, the oldest request first; empty if it wrote none.

    Raises:
        RunError: a file is damaged, or was changed since.
    """
    stored = read_stored(folder / _INDEX)
    if stored is None:
        return ()
    found = []
    with stored_values(folder / _INDEX):
        for number, entry in enumerate(stored["requests"], start=1):
            sets = {}
            for name in _SETS:
                file = _file(folder, number, name)
                rows = RowSet(name, read_rows(file, ColumnsConfig()))
                if rows.content_hash != entry["hashes"][name]:
                    raise RunError(f"{file} was changed after it was written: restore it from a copy")
                sets[name] = rows.rows
            found.append(EarlierRows(id=entry["id"], person=entry["person"], scoring=entry["scoring"], **sets))
    return tuple(found)


def forget_files(folder: Path, count: int) -> tuple[str, ...]:
    """Return the paths of the forget rows of ``count`` earlier requests."""
    return tuple(str(_file(folder, number, "forget")) for number in range(1, count + 1))


def _file(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number}_{name}.jsonl"
