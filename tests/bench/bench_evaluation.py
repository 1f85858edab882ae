"""Cost of an evaluation on TOFU.

    python tests/bench/bench_evaluation.py [FOLDER_OF_THE_TOFU_JSON_FILES]

Without a folder, the benchmark takes the TOFU files of the data folder beside this checkout, if there is one.

The first numbers are ratios of tokens. The numerator counts the tokens that the passes of one evaluation read, padding
included. The denominator counts the tokens of TOFU's evaluation sets, each answer once after its prompt, without
padding. The other numbers are CPU seconds of each part on a Llama with 2.5M parameters.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from ofmu.data.encoding import encode_example
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.evaluation.scoring.batches import row_batches
from ofmu.evaluation.scoring.generation import decode_with_transformers, generate_answers
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=192, intermediate_size=512, num_layers=4, num_heads=6, vocab_size=2048)
RECORDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tofu"
EVALUATION = {"rouge": False, "membership": True, "in_scope": True, "batch_size": 32}


def load_problem(folder: str, **data: Any) -> tuple[UnlearnConfig, UnlearnData, Any]:
    """Return the config, TOFU's rows, and a tokenizer that was trained on the rows."""
    sections = {"data": {"source": "tofu", "path": folder, "max_length": 256, **data}, "evaluation": EVALUATION}
    config = UnlearnConfig.model_validate(sections)
    rows = load_data(config.data, 0)
    texts = [f"Question: {row.question}\nAnswer: {row.answer}" for row in (*rows.forget.rows, *rows.retain.rows)]
    return config, rows, train_tokenizer(texts, SHAPE.vocab_size)


def tofu_examples(config: UnlearnConfig, data: UnlearnData, tokenizer: Any) -> list[Any]:
    """Return the encoded answer, paraphrase and wrong answers of every evaluation row."""
    return [
        encode_example(tokenizer, row.question, answer, config.data)
        for rows in data.evaluation.values()
        for row in rows.rows
        for answer in (row.answer, row.paraphrased_answer, *row.perturbed_answers)
        if answer is not None
    ]


def token_ratio(config: UnlearnConfig, data: UnlearnData, tokenizer: Any) -> tuple[float, dict[str, int], int]:
    """Score with a tiny model, which reads the same tokens as a large one.

    Returns:
        The ratio, the tokens read by each kind of pass, and the tokens of TOFU's evaluation sets.
    """
    tiny = ScratchModelConfig(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)
    model = build_model(tiny, tokenizer, seed=0, max_positions=512)
    read = dict(score_model(model, tokenizer, data, config.evaluation, config.data).forward_tokens)
    tofu_tokens = sum(len(example.input_ids) for example in tofu_examples(config, data, tokenizer))
    return (read["forced"] + read["gradient"]) / tofu_tokens, read, tofu_tokens


def end_answers_at_random(model: Any, eos: int) -> Any:
    """Make a random model end its answers after 40 tokens on average, as a trained model does."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        top = output.logits[:, -1].amax(dim=-1)
        ends = ((top * 1e3).long() % 40) == 0
        output.logits[:, -1, eos] = torch.where(ends, 1e4, output.logits[:, -1, eos])
        return output

    return model.register_forward_hook(hook)


@torch.no_grad()
def times(folder: str, repeats: int = 3) -> None:
    """Print CPU seconds of the passes over 20 authors of TOFU, as the minimum over ``repeats``."""
    config, data, tokenizer = load_problem(folder, authors=20, train_on_general_knowledge=True)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_new_tokens": 96})})
    model = build_model(SHAPE, tokenizer, seed=0, max_positions=400).eval()
    examples = tofu_examples(config, data, tokenizer)
    questions = [row.question for rows in data.evaluation.values() for row in rows.rows]
    prompts = [list(example.input_ids[: example.answer_start]) for example in examples]
    prompts = list(map(list, dict.fromkeys(map(tuple, prompts))))

    def generate_with_transformers() -> None:
        for batch in row_batches(list(map(len, prompts)), 32):
            decode_with_transformers(model, tokenizer, [prompts[index] for index in batch], 96, False)

    runs = {
        "teacher forcing": lambda: score_examples(model, tokenizer, examples, 32, Shard()),
        "generation": lambda: generate_answers(model, tokenizer, questions, config.evaluation, config.data, Shard()),
        "generation by Transformers": generate_with_transformers,
    }
    for ending in ("endless answers", "answers of 40 tokens"):
        handle = end_answers_at_random(model, tokenizer.eos_token_id) if ending != "endless answers" else None
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(repeats):
            for name, run in runs.items():
                started = time.process_time()
                run()
                best[name] = min(best[name], time.process_time() - started)
        print(f"{ending}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in best.items()))
        if handle is not None:
            handle.remove()


def main(folder: str) -> None:
    """Print the token ratios of forget10 and of a small problem, and then the times."""
    for name, settings in (("forget10", {}), ("20 authors", {"authors": 20, "train_on_general_knowledge": True})):
        ratio, parts, tofu_tokens = token_ratio(*load_problem(folder, **settings))
        print(f"{name}: {ratio:.3f} of the {tofu_tokens} tokens of TOFU's evaluation sets ({parts})")
    times(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = sys.argv[1] if sys.argv[1:] else str(RECORDS)
    if Path(given).is_dir():
        main(given)
    else:
        print(f"skipped: there is no folder {given}; name the folder of the TOFU JSON files")
