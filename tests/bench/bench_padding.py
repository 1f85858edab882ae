"""Share of padding in the tokens that training, unlearning and scoring read.

    python tests/bench/bench_padding.py [SOURCE PATH [SPLIT]]      # such as: tofu PATH forget10

Without arguments, the rows are those of the quickstart.
The rows are encoded by a byte-level BPE tokenizer of 16,384 words that is trained on them. No model is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example, RowSet
from ofmu.data.sampler import MinibatchSampler
from ofmu.evaluation.scoring.prompt_blocks import prompt_blocks
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import epoch_orders
from ofmu.losses import padded_tokens
from ofmu.models.scratch import train_tokenizer

WORDS = 16_384
BATCHES = (8, 16, 32)


class _NoLimits:
    vocab_size = max_position_embeddings = None

    def get_text_config(self) -> _NoLimits:
        return self


def share(batches: Iterable[Sequence[Example]]) -> float:
    """Return the share of padding of batches that are read whole."""
    padded = real = 0
    for batch in batches:
        padded += padded_tokens(batch)
        real += sum(len(row.input_ids) for row in batch)
    return 1 - real / padded


def micro_batches(minibatch: Sequence[Example], size: int) -> list[Sequence[Example]]:
    """Cut a minibatch as an engine with ``engine.micro_batch_size`` does."""
    ordered = sorted(minibatch, key=lambda row: len(row.input_ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def show(name: str, rows: Sequence[Example], size: int) -> None:
    sampler = MinibatchSampler(rows, size, 0, name)
    drawn = [sampler.draw() for _ in range(4 * max(1, len(rows) // size))]
    lengths = [len(row.input_ids) for row in rows]
    grouped = TrainingConfig(epochs=4, batch_size=size, group_by_length=True)
    epochs = [[rows[i] for i in batch] for epoch in epoch_orders(lengths, grouped, 0, 0) for batch in epoch]
    shares = (
        share(drawn),
        share(part for batch in drawn for part in micro_batches(batch, size // 4)),
        share(epochs),
    )
    print(f"| {name} | {size} | " + " | ".join(f"{value:.1%}" for value in shares) + " |", flush=True)


def scored(rows: RowSet, encoder: RowEncoder, size: int) -> str:
    """Say what is read when the answers of an evaluation set are scored. A prompt that is read again is padding."""
    examples = [
        example
        for row in rows.rows
        for answer in (row.answer, row.paraphrased_answer, *row.perturbed_answers)
        if answer
        for example in encoder.encode("evaluation", row.question, answer)
    ]
    blocks = prompt_blocks(examples, size)
    padded = sum(block.tokens for block in blocks)
    prompts = {example.input_ids[: example.answer_start] for example in examples}
    real = sum(map(len, prompts)) + sum(example.answer_length - 1 for example in examples)
    passes = sum(block.forward_passes for block in blocks)
    return f"{1 - real / padded:.1%} of {padded} tokens, in {passes} passes for {len(examples)} answers"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", default="generated")
    parser.add_argument("path", nargs="?")
    parser.add_argument("split", nargs="?")
    arguments = parser.parse_args()
    given = {"source": arguments.source, "path": arguments.path, "max_length": 2048}
    config = DataConfig.model_validate(given | ({"split": arguments.split} if arguments.split else {}))
    data = load_data(config, 0)
    texts = [f"{row.question} {row.answer}" for rows in (data.forget, data.retain) for row in rows.rows]
    encoder = RowEncoder(train_tokenizer(texts, WORDS), config, _NoLimits())
    print("| rows | a minibatch | drawn at random | the same in four micro-batches | grouped by length |")
    print("|---|---|---|---|---|")
    encoded = {rows.name: encoder.encode_rows(rows.name, rows.rows) for rows in (data.forget, data.retain)}
    encoded["both"] = [example for rows in encoded.values() for example in rows]
    for name, rows in encoded.items():
        for size in BATCHES:
            show(name, rows, size)
    for name, row_set in data.evaluation.items():
        print(f"scoring {name}, evaluation.batch_size 32: {scored(row_set, encoder, 32)}")


if __name__ == "__main__":
    main()
