"""The rows of earlier requests, as files that the next request reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ofmu.data.kinds import TaskKind
from ofmu.errors import RunError
from ofmu.io.files import write_json
from ofmu.run_files import read_stored, stored_values
from ofmu.tasks.load import task_family

_INDEX = "earlier.json"
_SETS = ("forget", "left_out")


@dataclass(frozen=True, kw_only=True)
class EarlierRows:
    """The rows of one earlier request."""

    id: str
    """The request's name."""
    forget: tuple[Any, ...]
    """Rows of text, or images."""
    left_out: tuple[Any, ...] = ()
    """Rows that the request neither forgot nor retained, since they may be about the same or say nearly the same."""
    person: str | None = None
    """The person whom the request named."""
    scoring: Mapping[str, Any] = field(default_factory=dict)
    """How the request scored its forget rows: see :meth:`ofmu.tasks.forgotten.ForgottenRows.scoring_of`."""
    is_run: bool = False
    """Whether these are rows that were forgotten before the first request of a chain of ``ofmu forget``. It is not
    stored."""


def write_earlier(folder: Path, requests: Sequence[EarlierRows], kind: TaskKind = "language") -> None:
    """Write the rows of earlier requests into a folder that exists.

    Raises:
        StorageError: the disk refuses.
    """
    forgotten = task_family(kind).forgotten
    for number, request in enumerate(requests, start=1):
        for name in _SETS:
            forgotten.write(_file(folder, number, name, kind), getattr(request, name))
    write_json(folder / _INDEX, {"requests": index_of(requests, kind)})


def index_of(requests: Sequence[EarlierRows], kind: TaskKind = "language") -> list[dict[str, Any]]:
    """Return what two chains of the same rows and settings have in common, as JSON values."""
    forgotten = task_family(kind).forgotten
    return [
        {
            "id": request.id,
            "person": request.person,
            "scoring": dict(request.scoring),
            "hashes": {name: forgotten.content_hash(getattr(request, name)) for name in _SETS},
        }
        for request in requests
    ]


def read_earlier_rows(folder: Path, kind: TaskKind = "language") -> tuple[EarlierRows, ...]:
    """Return the rows that :func:`write_earlier` wrote, the oldest request first; empty if it wrote none.

    Raises:
        RunError: a file is damaged, or was changed since.
    """
    stored = read_stored(folder / _INDEX)
    if stored is None:
        return ()
    forgotten = task_family(kind).forgotten
    found = []
    with stored_values(folder / _INDEX):
        for number, entry in enumerate(stored["requests"], start=1):
            sets: dict[str, Any] = {}
            for name in _SETS:
                file = _file(folder, number, name, kind)
                sets[name] = forgotten.read(file)
                if forgotten.content_hash(sets[name]) != entry["hashes"][name]:
                    raise RunError(f"{file} was changed after it was written: restore it from a copy")
            found.append(EarlierRows(id=entry["id"], person=entry["person"], scoring=entry["scoring"], **sets))
    return tuple(found)


def forget_files(folder: Path, count: int, kind: TaskKind = "language") -> tuple[str, ...]:
    """Return the paths of the forget rows of ``count`` earlier requests."""
    return tuple(str(_file(folder, number, "forget", kind)) for number in range(1, count + 1))


def _file(folder: Path, number: int, name: str, kind: TaskKind) -> Path:
    return folder / f"{number}_{name}{task_family(kind).forgotten.suffix}"
