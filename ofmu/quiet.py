"""Keeps libraries' chatter out of the command line's output and of workers' logs."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Switch off progress bars of transformers and datasets, and DeepSpeed's note that there is no GPU."""
    import torch
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    datasets_logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
