"""What an evaluation costs on TOFU: run ``python tests/bench/bench_evaluation.py FOLDER_OF_THE_TOFU_JSON_FILES``.

Forward tokens of everything that one evaluation measures, padding included, against the tokens of TOFU's own full
set (each answer once behind its prompt, no padding); then CPU seconds per part on a 2.5M-parameter Llama.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from ofmu.data.encoding import encode_example
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.evaluation.scoring.generation import _library_greedy, generate_answers
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.sharding import Shard, global_batches
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=192, intermediate_size=512, num_layers=4, num_heads=6, vocab_size=2048)
EVERYTHING = {"rouge": False, "membership": True, "in_scope": True, "batch_size": 32}


def problem(folder: str, **data: Any) -> tuple[UnlearnConfig, UnlearnData, Any]:
    """Return TOFU's rows and a tokenizer trained on them."""
    sections = {"data": {"source": "tofu", "path": folder, "max_length": 256, **data}, "evaluation": EVERYTHING}
    config = UnlearnConfig.model_validate(sections)
    rows = load_data(config.data, 0)
    texts = [f"Question: {row.question}\nAnswer: {row.answer}" for row in (*rows.forget.rows, *rows.retain.rows)]
    return config, rows, train_tokenizer(texts, SHAPE.vocab_size)


def own_examples(config: UnlearnConfig, data: UnlearnData, tokenizer: Any) -> list[Any]:
    """Return TOFU's full set: the answer, the paraphrase and the wrong answers of every evaluation row."""
    return [
        encode_example(tokenizer, row.question, answer, config.data)
        for rows in data.evaluation.values()
        for row in rows.rows
        for answer in (row.answer, row.paraphrased_answer, *row.perturbed_answers)
        if answer is not None
    ]


def token_ratio(config: UnlearnConfig, data: UnlearnData, tokenizer: Any) -> tuple[float, dict[str, int], int]:
    """Score with a tiny model, whose tokens count the same; return the ratio, its parts, and the set's own tokens."""
    tiny = ScratchModelConfig(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)
    model = build_model(tiny, tokenizer, seed=0, max_positions=512)
    read = dict(score_model(model, tokenizer, data, config.evaluation, config.data).forward_tokens)
    own = sum(len(example.input_ids) for example in own_examples(config, data, tokenizer))
    return (read["forced"] + read["gradient"]) / own, read, own


def stop_now_and_then(model: Any, eos: int) -> Any:
    """Make a random model end its answers after 40 tokens on average, as a trained one does."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        top = output.logits[:, -1].amax(dim=-1)
        ends = ((top * 1e3).long() % 40) == 0
        output.logits[:, -1, eos] = torch.where(ends, 1e4, output.logits[:, -1, eos])
        return output

    return model.register_forward_hook(hook)


@torch.no_grad()
def times(folder: str, repeats: int = 3) -> None:
    """Print CPU seconds of the passes over 20 authors of TOFU, the least of some rounds."""
    config, data, tokenizer = problem(folder, authors=20, train_on_general_knowledge=True)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_new_tokens": 96})})
    model = build_model(SHAPE, tokenizer, seed=0, max_positions=400).eval()
    examples = own_examples(config, data, tokenizer)
    questions = [row.question for rows in data.evaluation.values() for row in rows.rows]
    prompts = [list(example.input_ids[: example.answer_start]) for example in examples]
    prompts = list(map(list, dict.fromkeys(map(tuple, prompts))))

    def library() -> None:
        for batch in global_batches(list(map(len, prompts)), 32):
            _library_greedy(model, tokenizer, [prompts[index] for index in batch], 96, False)

    runs = {
        "teacher forcing": lambda: score_examples(model, tokenizer, examples, 32, Shard()),
        "generation": lambda: generate_answers(model, tokenizer, questions, config.evaluation, config.data, Shard()),
        "generation by the library": library,
    }
    for ending in ("endless answers", "answers of 40 tokens"):
        handle = stop_now_and_then(model, tokenizer.eos_token_id) if ending != "endless answers" else None
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
    """Print the token ratios of the full benchmark and of the small problem, then the times."""
    for name, settings in (("forget10", {}), ("20 authors", {"authors": 20, "train_on_general_knowledge": True})):
        ratio, parts, own = token_ratio(*problem(folder, **settings))
        print(f"{name}: {ratio:.3f} of the {own} tokens of TOFU's own set ({parts})")
    times(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
