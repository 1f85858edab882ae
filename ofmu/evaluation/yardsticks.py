"""What a model's metrics are read against: those of the untouched target and of the retrained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ofmu.errors import ModelError, ReferenceMismatchError

if TYPE_CHECKING:
    from ofmu.evaluation.metrics.custom import Measure, ScoresT
    from ofmu.run_config import UnlearnConfig


def yardsticks(
    config: UnlearnConfig,
    expected: ScoresT | None,
    load: Callable[[Path], ScoresT],
    measure: Measure[ScoresT],
) -> dict[str, Mapping[str, float | None]]:
    """Return the metrics of ``target``, where the cache has its scores, and of ``retrained``, the reference itself.

    Args:
        config: the run, by which the target is looked for.
        expected: the reference's scores, on all sets or on the forget set alone.
        load: reads a file of scores.
        measure: makes metrics of scores and of those of the reference.

    Raises:
        DataError: the data, which the cache goes by, cannot be read.
    """
    from ofmu.preparer import find_target_scores

    found: dict[str, Mapping[str, float | None]] = {}
    # The target may be gone by now, and a reference of the user's own may cover other rows than the cache's scores.
    with suppress(ModelError, ReferenceMismatchError):
        path = find_target_scores(config)
        if path is not None:
            found["target"] = measure(load(path), expected).values
    if expected is not None:
        found["retrained"] = measure(expected, expected).values
    return found
