"""Silence the libraries, so that commands, logs of workers and notebooks show our own output only."""

from __future__ import annotations

import os
import sys


def silence_libraries() -> None:
    """Switch off the progress bars of Transformers and Datasets, and DeepSpeed's note about a missing GPU.

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
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
