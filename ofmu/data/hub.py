"""Data sets on the Hugging Face hub, and local directories with the hub's layout."""

from __future__ import annotations

from typing import Any

from ofmu.errors import DataError
from ofmu.io.files import expanded
from ofmu.io.library_logging import asking_the_hub
from ofmu.models.hub import hub_reason


def load_hub_split(source: str, split: str, *, subset: str | None = None, instead: str) -> Any:
    """Load one split of a data set.

    Args:
        source: the data set's name on the hub, or a local directory with the hub's layout.
        split: the split, such as ``train``.
        subset: the data set's configuration; None if it has one only.
        instead: what the user can do without the hub, in the imperative, for the error.

    Raises:
        DataError: the hub cannot be reached, it has no such data set, configuration or split, or a local directory
            cannot be read.
    """
    # The datasets library takes seconds to import, and local files do not need it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    folder = expanded(source)
    place = str(folder) if folder.is_dir() else source
    try:
        with asking_the_hub():
            return load_dataset(place, *([] if subset is None else [subset]), split=split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        shown = f"'{source}'" if subset is None else f"'{source}' ({subset})"
        if folder.is_dir():
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"The data set {shown} cannot be loaded, since the hub's library says '{reason}': check the files of "
                f"that directory, or {instead}"
            ) from error
        raise DataError(
            f"The hub data set {shown} cannot be loaded, since {hub_reason(error)}, or {instead}"
        ) from error


def local_copy(file_format: str) -> str:
    """Return what the user can do without the hub if ``data.path`` takes a directory of files of this format."""
    return f"set data.path to a local directory of its {file_format} files"
