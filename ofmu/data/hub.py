"""Data sets on the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from ofmu.errors import DataError
from ofmu.io.library_logging import asking_the_hub
from ofmu.models.hub import hub_reason


def load_hub_split(name: str, split: str, *, subset: str | None = None, file_format: str) -> Any:
    """Load one split of a data set on the hub.

    Args:
        name: the data set's name, or a local directory with the hub's layout.
        split: the split, such as ``train``.
        subset: the data set's configuration; None if it has one only.
        file_format: format of the files that ``data.path`` accepts instead, for the error.

    Raises:
        DataError: the hub cannot be reached, or has no such data set, configuration or split.
    """
    # The datasets library takes seconds to import, and local files do not need it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with asking_the_hub():
            return load_dataset(name, *([] if subset is None else [subset]), split=split)
    except (OSError, ValueError, DatasetsError) as error:
        shown = f"'{name}'" if subset is None else f"'{name}' ({subset})"
        raise DataError(
            f"The hub data set {shown} cannot be loaded, since {hub_reason(error)}, or set data.path to a local "
            f"directory of its {file_format} files"
        ) from error
