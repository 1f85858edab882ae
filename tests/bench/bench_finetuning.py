"""A step of fine-tuning beside a step of the transformers Trainer, on the same model and the same rows.

    python tests/bench/bench_finetuning.py [MODEL_DIRECTORY] [--steps 10] [--repetitions 3] [--length 128]

Both train in fp32 with AdamW of torch, on minibatches of 8 rows of one length, in turns in one process with one thread.
The Trainer neither saves nor evaluates, and logs nothing. The table has the seconds of a step and their ratio, from the
fastest repetition of each. Without a directory: a Llama of 34M parameters.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from time import perf_counter
from typing import Any

from measuring import random_rows

BATCH, PROMPT = 8, 16


def ours(model: Any, rows: list[Any]) -> float:
    """Train for one epoch with the project's loop. Return the seconds."""
    from ofmu.finetuning.config import TrainingConfig
    from ofmu.finetuning.loop import finetune

    training = TrainingConfig(epochs=1, batch_size=BATCH, learning_rate=1e-5)
    started = perf_counter()
    finetune(model, rows, training, seed=0, pad_id=0)
    return perf_counter() - started


def theirs(model: Any, rows: list[Any], folder: str) -> float:
    """Train for one epoch with the Trainer. Return the seconds of ``train``."""
    from transformers import Trainer, TrainingArguments

    from ofmu.data.collate import IGNORE_INDEX

    masked = [IGNORE_INDEX] * PROMPT
    dataset = [{"input_ids": list(row.input_ids), "labels": masked + list(row.input_ids[PROMPT:])} for row in rows]
    arguments = TrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-5,
        optim="adamw_torch",
        max_grad_norm=0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    started = perf_counter()
    trainer.train()
    return perf_counter() - started


def main() -> None:
    """Measure both in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", help="a saved model")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.directory:
        model = AutoModelForCausalLM.from_pretrained(arguments.directory, dtype=torch.float32)
    else:
        sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, **sizes))
    rows = random_rows(BATCH * arguments.steps, model.config.vocab_size, arguments.length, prompt=PROMPT)
    seconds: dict[str, list[float]] = {"ofmu": [], "Trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repetitions):
            seconds["ofmu"].append(ours(copy.deepcopy(model), rows))
            seconds["Trainer"].append(theirs(copy.deepcopy(model), rows, folder))
    best = {name: min(values) / arguments.steps for name, values in seconds.items()}
    print("| s a step: ofmu | Trainer | ratio |")
    print("|---|---|---|")
    print(f"| {best['ofmu']:.3f} | {best['Trainer']:.3f} | {best['ofmu'] / best['Trainer']:.3f} |")


if __name__ == "__main__":
    main()
