"""Padded batches of tokenised rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ofmu.data.rows import Example

IGNORE_INDEX = -100
"""Label of tokens that a loss leaves out. PyTorch's ``cross_entropy`` has the same default."""


def collate(rows: Sequence[Example], pad_id: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad rows on the right to the length of the longest row.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, longest), int64. Labels are −100 on
        prompt and padding.
    """
    longest = max(len(row.input_ids) for row in rows)
    shape = (len(rows), longest)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.input_ids, dtype=torch.long)
        input_ids[index, : len(ids)] = ids
        attention_mask[index, : len(ids)] = 1
        labels[index, row.answer_start : len(ids)] = ids[row.answer_start :]
    return {
        "input_ids": input_ids.to(device),
        "attention_mask": attention_mask.to(device),
        "labels": labels.to(device),
    }
