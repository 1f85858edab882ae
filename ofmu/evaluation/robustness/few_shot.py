"""The attack by examples: other forget rows with their answers stand in the prompt before a question.

Examples in the prompt can bring back what a model seems to have forgotten (in-context relearning: Lynch et al., arXiv
2402.16835). No weight changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_prompt
from ofmu.data.row_encoder import with_prompting
from ofmu.data.rows import Row, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.robustness.attacks import SAMPLED_ROWS, asked_rows
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scoring.generation import generate_answers
from ofmu.evaluation.scoring.model import evaluation_mode, with_token_limit
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.sets import FORGET

EXAMPLES = 4

_METRIC = "few_shot_leakage"
_SLOT = "{question}"


def few_shot(
    model: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    *,
    seed: int,
    examples: int = EXAMPLES,
    rows: int = SAMPLED_ROWS,
) -> RobustnessResult:
    """Ask forget questions after examples: other forget rows with their right answers.

    An answer may repeat words of the examples. The score of the retrained model shows how much that alone brings.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        data: the data with the forget rows.
        evaluation: gives the batch size and the number of new tokens.
        encoding: the data section, which rules how rows become tokens.
        seed: draws the examples of each question.
        examples: largest number of examples before a question. A prompt that leaves no room for
            ``evaluation.max_new_tokens`` in the model's positions has fewer.
        rows: largest number of forget rows that are asked: those with the lowest content hashes, so every model gets
            the same questions.

    Returns:
        ``few_shot_leakage`` is the mean ROUGE-L recall of the greedy answers. The details hold the number of ``rows``,
        and the mean number of ``examples`` before a question.

    Raises:
        DataError: a prompt without examples fills all positions of the model.
    """
    forget = [row for row in data.evaluation.get(FORGET, data.forget).rows if row.question]
    if len(forget) < 2:
        return _missing("fewer than two forget rows have a question, so there is no example")
    own = data.prompting_of(FORGET)
    limits, prompts = with_token_limit(evaluation, own), with_prompting(encoding, own)
    positions = getattr(model.config, "max_position_embeddings", None)

    def fits(text: str) -> bool:
        return positions is None or len(encode_prompt(tokenizer, text, prompts)) + limits.max_new_tokens <= positions

    used, questions = [], []
    asked = asked_rows(data, rows)
    for row in asked:
        drawn = _draw_examples(forget, row, examples, seed)
        text, count = _longest_that_fits(drawn, row.question, tokenizer, prompts, fits)
        questions.append(text)
        used.append(count)
    if not any(used):
        return _missing(
            "no example fits into the model's positions beside a question and its answer, or all forget rows have the "
            "same question"
        )
    with evaluation_mode(model):
        answers = generate_answers(model, tokenizer, questions, limits, prompts, Shard())
    recalls = [rouge_l_recall(row.answer, given.text) for row, given in zip(asked, answers, strict=True)]
    details = {"rows": len(asked), "examples": float(np.mean(used))}
    return RobustnessResult(metrics={_METRIC: float(np.mean(recalls))}, reasons={}, details=details)


def question_with_examples(examples: Sequence[Row], question: str, tokenizer: Tokenizer, encoding: DataConfig) -> str:
    """Return a text that stands in the place of the question in its prompt.

    With ``data.prompt_template``, the whole prompt is the prompt of each example, its answer, and the prompt of the
    question. With a chat template, the user's message holds each example's question and answer, and the question.
    """
    chat = encoding.use_chat_template and getattr(tokenizer, "chat_template", None)
    before, slot, after = encoding.prompt_template.partition(_SLOT)
    if chat or not slot or _SLOT in after:
        return "".join(f"{row.question}\n{row.answer}\n\n" for row in examples) + question
    space = "" if after[-1:].isspace() or (not after and before) else " "
    return "".join(f"{row.question}{after}{space}{row.answer}\n\n{before}" for row in examples) + question


def _longest_that_fits(
    drawn: Sequence[Row], question: str, tokenizer: Tokenizer, encoding: DataConfig, fits: Callable[[str], bool]
) -> tuple[str, int]:
    """Return the text with as many of the first examples as fit, and their number."""
    for count in range(len(drawn), 0, -1):
        text = question_with_examples(drawn[:count], question, tokenizer, encoding)
        if fits(text):
            return text, count
    return question, 0


def _draw_examples(rows: Sequence[Row], asked: Row, count: int, seed: int) -> list[Row]:
    """Return rows with another question and another answer, drawn by the seed and by the content of the asked row."""
    others = [row for row in rows if row.question != asked.question and row.answer != asked.answer]
    return random.Random(f"{seed}/few-shot/{asked.question}").sample(others, min(count, len(others)))


def _missing(reason: str) -> RobustnessResult:
    return RobustnessResult(metrics={_METRIC: None}, reasons={_METRIC: reason}, details={})
