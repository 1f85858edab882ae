"""Metrics of other models, read from files, as columns beside the metrics of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ofmu.evaluation.open_unlearning import is_open_unlearning_summary, metrics_of_summary
from ofmu.io.files import read_json
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.family import TaskFamily

_Columns = dict[str, Mapping[str, float | None]]


def read_beside(
    paths: Sequence[str | Path],
    family: TaskFamily,
    config: UnlearnConfig,
    expected: Any,
    check: Callable[[Any], None],
) -> _Columns:
    """Return the metrics of each file, by a name for the file.

    A file holds scores, a log or a summary of open-unlearning, or is ``metrics.json`` of this package. The metrics of
    scores and logs are computed here. A summary and ``metrics.json`` hold totals, so nothing tells which rows they
    cover. What is no finite number in them counts as missing, since other software writes NaN.

    Args:
        paths: the files.
        family: the kind of task.
        config: rules how a log is read.
        expected: the reference's scores, or None.
        check: raises ReferenceMismatchError for scores of other rows.

    Raises:
        DataError: a file cannot be read, or holds neither scores nor metrics.
        ReferenceMismatchError: a file has scores of other rows.
    """
    columns: _Columns = {}
    for path, name in zip(map(Path, paths), _names(paths), strict=True):
        content = read_json(path)
        if is_open_unlearning_summary(content):
            columns[name] = dict(metrics_of_summary(_finite_numbers(content)))
        elif isinstance(content, dict) and isinstance(content.get("metrics"), dict):
            columns[name] = _finite_numbers(content["metrics"])
        else:
            scores = family.load_scores(path, config)
            check(scores)
            columns[name] = family.metrics_of(scores, expected).values
    return columns


def _finite_numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: value if _is_finite_number(value) else None for name, value in values.items()}


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Return a name for each file: its folder's name, or the whole path if two files have one name."""
    names = [Path(path).absolute().parent.name for path in paths]
    taken = ("value", "target", "retrained")
    return [
        name if names.count(name) == 1 and name and name not in taken else str(path)
        for path, name in zip(paths, names, strict=True)
    ]
