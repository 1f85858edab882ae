from __future__ import annotations

from ofmu.data.collate import collate
from ofmu.data.rows import Example


def test_collate_masks_prompt_and_padding() -> None:
    batch = collate([Example((5, 6, 7), 1), Example((8, 9), 1)], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
