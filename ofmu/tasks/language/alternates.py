"""Answers with other facts, which the target writes for AltPO where the data gives none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_prompt
from ofmu.data.rows import Row
from ofmu.engine.base import Engine
from ofmu.errors import DataError
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.scoring.generation import sample_answers
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.io.text import counted

SAMPLES = 4
"""Answers that the target writes per question. The first one that differs from the true answer is taken."""
MAX_OVERLAP = 0.8
"""ROUGE-L recall of the true answer above which a sample repeats it."""
REQUEST = (
    "Write an answer to this question that is plausible, has the same form, and states other facts than the answer "
    "'{answer}'. {question}"
)


def alternate_answers(
    engine: Engine,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    others: Sequence[Row],
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    seed: int,
) -> list[str]:
    """Return an answer with other facts for each row; collective.

    A row with an ``alternate_answer`` keeps it. For the other rows the model of the engine samples answers. A row whose
    samples all repeat the true answer gets the answer of one of ``others``, and a warning counts such rows.

    Args:
        engine: holds the target.
        tokenizer: the target's tokenizer.
        rows: the forget rows.
        others: rows with answers to other questions.
        evaluation: gives the batch size and the number of new tokens.
        encoding: the data section, which rules how a question becomes a prompt.
        seed: seed of the samples.

    Raises:
        DataError: a row has neither a question nor an alternate answer, or the rows without a usable sample have no
            other answer to take.
    """
    wanted = [index for index, row in enumerate(rows) if row.alternate_answer is None]
    for index in wanted:
        if not rows[index].question:
            raise DataError(
                f"Forget row {index + 1} is plain text, to which there is no other answer: give the rows questions, or "
                "use another method, such as npo"
            )
    found = {index: row.alternate_answer for index, row in enumerate(rows) if row.alternate_answer is not None}
    free = (getattr(engine.model.config, "max_position_embeddings", None) or math.inf) - evaluation.max_new_tokens
    requests = [_request(rows[index], tokenizer, encoding, free) for index in wanted]
    repeated = []
    for index, samples in zip(wanted, _samples(engine, tokenizer, requests, evaluation, encoding, seed), strict=True):
        fitting = [text for text in samples if text and rouge_l_recall(rows[index].answer, text) <= MAX_OVERLAP]
        if fitting:
            found[index] = fitting[0]
        else:
            repeated.append(index)
    found |= _answers_of_others(rows, repeated, others)
    return [found[index] for index in range(len(rows))]


def _request(row: Row, tokenizer: Tokenizer, encoding: DataConfig, free: float) -> str:
    """Return what the target is asked: the question alone if the whole request has more than ``free`` tokens."""
    request = REQUEST.format(answer=row.answer, question=row.question)
    return request if len(encode_prompt(tokenizer, request, encoding)) <= free else row.question


def _samples(
    engine: Engine,
    tokenizer: Tokenizer,
    requests: Sequence[str],
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    seed: int,
) -> list[list[str]]:
    """Return the samples for each request. Every rank draws all of them, and so the same ones."""
    model = engine.model
    was_training = model.training
    model.eval()
    try:
        texts = sample_answers(model, tokenizer, requests, SAMPLES, evaluation, encoding, seed)
    finally:
        model.train(was_training)
    tokens = sum(
        len(tokenizer(f"{request} {text}")["input_ids"])
        for request, samples in zip(requests, texts, strict=True)
        for text in samples
    )
    passes = math.ceil(len(requests) * SAMPLES / evaluation.batch_size)
    for _ in range(passes):
        engine.cost_tracker.count_forward(tokens // passes)
    return texts


def _answers_of_others(rows: Sequence[Row], repeated: Sequence[int], others: Sequence[Row]) -> dict[int, str]:
    if not repeated:
        return {}
    taken: dict[int, str] = {}
    for index in repeated:
        fitting = [other.answer for other in others if rouge_l_recall(rows[index].answer, other.answer) <= MAX_OVERLAP]
        if not fitting:
            raise DataError(
                f"The target writes no other answer to forget row {index + 1}: give the row an 'alternate_answer'"
            )
        taken[index] = fitting[index % len(fitting)]
    warnings.warn(
        f"The target wrote no other answer to {counted(len(repeated), 'forget row')}, which got the answer of a retain "
        "row: for better alternates give the rows an 'alternate_answer'",
        stacklevel=2,
    )
    return taken
