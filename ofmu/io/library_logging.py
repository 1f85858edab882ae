"""Silence the libraries, so that commands, logs of workers and notebooks show our own output only."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_HUB_REQUESTS = "huggingface_hub.utils._http"
"""The logger that says twice of every failed request that it failed and that it is tried again."""

_MISSING_KERNELS = "bitsandbytes.backends.cpu.ops"
"""The logger that names an optional package, which nothing here needs, whenever bitsandbytes is imported."""


def silence_libraries() -> None:
    """Switch off the progress bars of Transformers and Datasets, and notes about a missing GPU or missing kernels.

    A library that is not imported yet gets an environment variable. If the user set that variable, it stays.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if "datasets" in sys.modules:
        from datasets.utils import logging as datasets_logging

        datasets_logging.disable_progress_bar()
    else:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger(_MISSING_KERNELS).setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def asking_the_hub() -> Iterator[None]:
    """Give one warning for all requests of the block that the Hugging Face hub does not answer, and that are repeated.

    The libraries write two lines for each of them, and Datasets one more if its cache has what the hub did not give.
    Every function of ours that asks the hub raises one sentence if there is no answer in the end.
    """
    requests, datasets = logging.getLogger(_HUB_REQUESTS), logging.getLogger("datasets")
    level, once = datasets.level, _WarnOnce()
    requests.addFilter(once)
    datasets.setLevel(logging.ERROR)
    try:
        yield
    finally:
        requests.removeFilter(once)
        datasets.setLevel(level)


class _WarnOnce(logging.Filter):
    """Drops every record, and gives one warning for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._has_warned = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False: no record is written."""
        if record.levelno >= logging.WARNING and not self._has_warned:
            self._has_warned = True
            warnings.warn("the Hugging Face hub does not answer at once, so it is asked again", stacklevel=2)
        return False
