"""Metrics share forward passes: one evaluation reads at most 1.3 times the tokens of TOFU's evaluation sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from ofmu.data.encoding import encode_example
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.evaluation.in_scope import in_scope_sets
from ofmu.evaluation.scoring.prompt_blocks import prompt_blocks
from ofmu.models.scratch import train_tokenizer
from ofmu.run_config import UnlearnConfig


@pytest.mark.slow
@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_an_evaluation_of_tofu_reads_at_most_1_3_times_its_tokens(shared_data: Path, split: str) -> None:
    section = {"source": "tofu", "path": str(shared_data / "tofu"), "split": split}
    config = UnlearnConfig.model_validate({"data": section}).data
    data: UnlearnData = load_data(config, 0)
    rows = [row for group in data.evaluation.values() for row in group.rows]
    tokenizer = train_tokenizer([f"Question: {row.question}\nAnswer: {row.answer}" for row in rows[:400]], 2048)
    sets = {name: group.rows for name, group in data.evaluation.items()}
    own = read = 0
    for name, group in (sets | in_scope_sets(data)).items():
        examples = [
            encode_example(tokenizer, row.question, answer, config)
            for row in group
            for answer in (row.answer, row.paraphrased_answer, *row.perturbed_answers)
            if answer is not None
        ]
        own += sum(len(example.input_ids) for example in examples) if name in sets else 0
        read += sum(block.tokens for block in prompt_blocks(examples, 32))
    assert read <= 1.3 * own
