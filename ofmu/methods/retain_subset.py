"""A share of the retain rows, for any method: what the result depends on which retain rows were used."""

from __future__ import annotations

import copy
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ofmu.methods.base import Context
from ofmu.methods.config import MethodConfig
from ofmu.run_files import RETAIN_ROWS
from ofmu.task import Task


@dataclass(frozen=True)
class DrawnRetainRows:
    """Which retain rows a run may use."""

    share: float
    draw: int
    indices: tuple[int, ...]
    """Positions among all encoded retain rows, in rising order."""
    total: int
    """Number of all encoded retain rows."""
    hash: str
    """SHA-256 (hex) of the data set's content and of the positions: equal for equal rows of equal data."""


def drawn_count(total: int, share: float) -> int:
    """Return the number of rows in a ``share`` of ``total`` rows, at least one."""
    return min(total, max(1, math.floor(share * total + 0.5)))


def drawn_retain_rows(total: int, content_hash: str, config: MethodConfig) -> DrawnRetainRows:
    """Return the rows that ``config.retain_draw`` gives, which neither the method nor the run's seed changes.

    Args:
        total: number of encoded retain rows.
        content_hash: the hash of the task's rows.
        config: the share and the draw.
    """
    generator = random.Random(f"{config.retain_draw}/retain rows")
    indices = tuple(sorted(generator.sample(range(total), drawn_count(total, config.retain_share))))
    digest = hashlib.sha256(f"{content_hash}/{','.join(map(str, indices))}".encode()).hexdigest()
    return DrawnRetainRows(config.retain_share, config.retain_draw, indices, total, digest)


def retain_rows_entry(task: Task[Any], config: MethodConfig) -> dict[str, Any]:
    """Return the entry of ``metrics.json`` that says which retain rows a method used; empty if it used them all."""
    if config.retain_share == 1:
        return {}
    return {RETAIN_ROWS: asdict(drawn_retain_rows(len(task.retain_rows), task.content_hash, config))}


def with_drawn_retain_rows(context: Context[Any], config: MethodConfig) -> Context[Any]:
    """Return the context of a method that sees only the drawn retain rows. The task itself keeps all of them."""
    task: Any = copy.copy(context.task)
    rows: Sequence[Any] = context.task.retain_rows
    task.retain_rows = [rows[index] for index in drawn_retain_rows(len(rows), task.content_hash, config).indices]
    return replace(context, task=task)
