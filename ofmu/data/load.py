"""From a data config to the rows of one unlearning problem, whatever their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ofmu.data.config import DataConfig
from ofmu.data.files import load_files
from ofmu.data.generated import generate
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.data.tofu import load_tofu
from ofmu.data.wmdp import load_wmdp
from ofmu.errors import DataError

SHOWN = 80
"""Characters of a row that an error shows."""

_SOURCES: Mapping[str, Callable[[DataConfig, int], UnlearnData]] = {
    "generated": lambda config, seed: generate(config.generated, seed),
    "tofu": lambda config, _: load_tofu(config),
    "wmdp": load_wmdp,
    "files": load_files,
}


def load_data(config: DataConfig, seed: int) -> UnlearnData:
    """Load or generate the forget, retain and holdout rows and the evaluation sets.

    ``seed`` draws the generated authors, and the evaluation rows where the user's own files hold too many.

    Raises:
        DataError: a file is missing or malformed, a set is empty, or the forget, retain and holdout rows overlap.
    """
    data = _SOURCES[config.source](config, seed)
    for rows in (data.forget, data.retain):
        if not len(rows):
            raise DataError(f"The {rows.name} set is empty: name a source with at least one row to {rows.name}")
    refuse_overlap(data.forget, data.retain)
    if data.holdout is not None:
        refuse_seen_holdout(data.holdout, data.forget, data.retain)
    return data


def refuse_overlap(forget: RowSet, retain: RowSet) -> None:
    """Raise DataError, showing the row, if a forget row also stands in ``retain`` up to case and white space."""
    kept = {_identity(row) for row in retain.rows}
    for number, row in enumerate(forget.rows, start=1):
        if _identity(row) in kept:
            raise DataError(
                f"Forget row {number} also stands in the retain set, which would train it back in: remove it from "
                f"one of the two ('{_shown(row)}')"
            )


def refuse_seen_holdout(holdout: RowSet, *trained: RowSet) -> None:
    """Raise DataError, showing the row, if a model is trained on a holdout row (up to case and white space)."""
    owners = {_identity(row): rows.name for rows in trained for row in rows.rows}
    for number, row in enumerate(holdout.rows, start=1):
        owner = owners.get(_identity(row))
        if owner is not None:
            raise DataError(
                f"Holdout row {number} also stands in the {owner} set, and membership attacks need rows that no model "
                f"was trained on: remove it from data.holdout ('{_shown(row)}')"
            )


def _shown(row: Row) -> str:
    text = " ".join(f"{row.question} {row.answer}".split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _identity(row: Row) -> tuple[str, str]:
    return " ".join(row.question.casefold().split()), " ".join(row.answer.casefold().split())
