"""What is wrong with the files that a config names, told before a cluster is started or torch is loaded for them."""

from __future__ import annotations

from pathlib import Path

from ofmu.data.load import load_data
from ofmu.data.tofu import HUB_NAME, may_be_on_the_hub
from ofmu.models.files import check_model_directory
from ofmu.run_config import UnlearnConfig


def look_ahead(config: UnlearnConfig) -> None:
    """Read the rows that lie in files of this machine, and see that the directories named as models hold some.

    What the hub must be asked for, WMDP's parts and images are looked at only when they are loaded.

    Raises:
        DataError: a file is missing or malformed, lacks a column, or the sets overlap.
        ModelError: a directory is missing, or holds no model that can be loaded without running code.
    """
    data, model, reference = config.data, config.model, config.reference
    if data.source == "files" or (data.source == "tofu" and not may_be_on_the_hub(data.path or HUB_NAME)):
        load_data(data, config.seed)
    if data.kind == "language":
        # a reference that is there may also be a run's directory, or a file of scores
        missing = reference.source == "model" and not Path(reference.path or "").expanduser().exists()
        for path in (model.path, model.base, reference.path if missing else None):
            if path is not None:
                check_model_directory(path)
