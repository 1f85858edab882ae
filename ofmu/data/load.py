"""Load the rows of one unlearning problem from any source of text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from ofmu.data.config import DataConfig
from ofmu.data.earlier import read_earlier, without_earlier
from ofmu.data.files import load_files
from ofmu.data.generated import generate
from ofmu.data.lume import load_lume
from ofmu.data.muse import load_muse
from ofmu.data.normalized import letters_and_digits, normalized
from ofmu.data.rows import RowSet, UnlearnData
from ofmu.data.rwku import load_rwku
from ofmu.data.tofu import load_tofu
from ofmu.data.wmdp import load_wmdp
from ofmu.errors import DataError

_SOURCES: Mapping[str, Callable[[DataConfig, int], UnlearnData]] = {
    "generated": lambda config, seed: generate(config.generated, seed),
    "tofu": lambda config, _: load_tofu(config),
    "wmdp": load_wmdp,
    "muse": load_muse,
    "rwku": load_rwku,
    "lume": lambda config, _: load_lume(config),
    "files": load_files,
}


def load_data(config: DataConfig, seed: int) -> UnlearnData:
    """Load or generate the forget, retain and holdout rows and the evaluation sets.

    Args:
        config: the ``data`` section of a config for text.
        seed: draws the generated authors, and the rows of a source that holds more rows than are used.

    Raises:
        ConfigError: the config does not name a file that the source needs.
        DataError: a file is missing or malformed, a set is empty, or the forget, retain and holdout rows overlap.
    """
    data = _SOURCES[config.source](config, seed)
    for rows in (data.forget, data.retain):
        if not len(rows):
            file = getattr(config, rows.name)
            where = "" if file is None else f" ({file} holds no row)"
            raise DataError(f"The {rows.name} set is empty{where}: name a source with at least one row to {rows.name}")
    earlier = RowSet("earlier forget", read_earlier(config.earlier))
    if len(earlier):
        data = without_earlier(data, earlier.rows)
    check_forget_not_retained(data.forget, data.retain)
    if config.source == "files":
        _warn_of_repeated_rows(data.forget)
    if data.holdout is not None:
        check_holdout_not_trained(data.holdout, data.forget, data.retain, earlier)
    return data


def check_forget_not_retained(forget: RowSet, retain: RowSet) -> None:
    """Check that no forget row is also a retain row. Case, white space, the Unicode normal form and invisible
    characters do not count.

    Raises:
        DataError: a row is in both sets. The message says where.
    """
    retained = {normalized(row): index for index, row in enumerate(retain.rows)}
    forgotten = [normalized(row) for row in forget.rows]
    for index, texts in enumerate(forgotten):
        if texts in retained:
            raise DataError(
                f"A forget row is also in the retain set, so training would restore it: remove {forget.place(index)} "
                f"or {retain.place(retained[texts])}"
            )
    _warn_of_near_copies(forget, retain, forgotten, retained)


def _warn_of_near_copies(
    forget: RowSet, retain: RowSet, forgotten: Sequence[tuple[str, str]], retained: Mapping[tuple[str, str], int]
) -> None:
    """Warn if a retain row differs from a forget row in punctuation and white space alone."""
    indices = {letters_and_digits(texts): index for index, texts in enumerate(forgotten)}
    copies = [
        (indices[key], index)
        for texts, index in retained.items()
        if any(key := letters_and_digits(texts)) and key in indices
    ]
    if copies:
        forget_index, retain_index = copies[0]
        more = f" ({len(copies)} such rows)" if len(copies) > 1 else ""
        warnings.warn(
            "A forget row is also in the retain set but for punctuation, so training would restore it: remove "
            f"{forget.place(forget_index)} or {retain.place(retain_index)}{more}",
            stacklevel=3,
        )


def _warn_of_repeated_rows(forget: RowSet) -> None:
    """Warn if a row to forget stands in its file more than once."""
    first: dict[tuple[str, str], int] = {}
    copies = [
        (first[texts], index)
        for index, row in enumerate(forget.rows)
        if first.setdefault(texts := normalized(row), index) != index
    ]
    if copies:
        original, copy = copies[0]
        more = f" ({len(copies)} such rows)" if len(copies) > 1 else ""
        warnings.warn(
            f"A forget row is there twice, and each copy is trained and scored: remove {forget.place(copy)}, which is "
            f"the same as {forget.place(original)}{more}",
            stacklevel=3,
        )


def check_holdout_not_trained(holdout: RowSet, *trained: RowSet) -> None:
    """Check that no model is trained on a holdout row. Case, white space, the Unicode normal form and invisible
    characters do not count.

    Raises:
        DataError: a holdout row is in one of the ``trained`` sets. The message says where.
    """
    set_names = {normalized(row): rows.name for rows in trained for row in rows.rows}
    for index, row in enumerate(holdout.rows):
        set_name = set_names.get(normalized(row))
        if set_name is not None:
            raise DataError(
                f"A holdout row is also in the {set_name} set, and membership attacks need rows that no model was "
                f"trained on: remove {holdout.place(index)}"
            )
