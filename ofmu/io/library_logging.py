"""Keeps libraries' chatter out of the command line's output, of workers' logs and of notebooks."""

from __future__ import annotations

import os
import sys


def silence_libraries() -> None:
    """Switch off progress bars of transformers and datasets, and DeepSpeed's note that there is no GPU.

    A library that is not loaded yet is told by its environment variable, which the user's own setting overrules.
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
