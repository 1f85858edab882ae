"""Ending a run early: who judges it after each round, and the account that an ended run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.errors import PrunedError
from ofmu.io.files import write_json

if TYPE_CHECKING:
    from ofmu.engine import Engine
    from ofmu.task import Task

_ACCOUNT = "pruned.json"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands after one of its rounds, the last one excepted."""

    round: int
    """From 1."""
    total: int
    """Rounds that the run is to take."""
    record: Mapping[str, Any]
    """The round's line of ``history.jsonl``."""
    engine: Engine
    task: Task[Any]
    reference_scores: Path | None


Judge = Callable[[Standing], None]
"""Called on every rank, alike; ends the run by raising :class:`ofmu.errors.PrunedError` on all of them."""


def write_account(directory: Path, account: Mapping[str, Any]) -> None:
    """Note in a run's directory that it was ended early, and why.

    Raises:
        StorageError: the disk refuses the write.
    """
    write_json(directory / _ACCOUNT, dict(account))


def read_account(directory: Path) -> dict[str, Any] | None:
    """Return why the run in ``directory`` was ended early; None where it was not."""
    path = directory / _ACCOUNT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def raise_if_pruned(directory: Path) -> None:
    """Do nothing where the run in ``directory`` was not ended early.

    Raises:
        PrunedError: it was, with the account it left.
    """
    account = read_account(directory)
    if account is not None:
        raise PrunedError(account)
