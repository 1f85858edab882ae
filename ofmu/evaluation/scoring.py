"""Scores of a model on the evaluation sets: teacher forcing and greedy generation, sharded over ranks.

Batches are formed over all rows before they are dealt to ranks, so a row always shares its batch with the same
rows, whatever the number of ranks, and its scores are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ofmu.data.encoding import Tokenizer, encode_example
from ofmu.data.rows import Example, Row, UnlearnData
from ofmu.evaluation.forced import ForcedScore, score_examples
from ofmu.evaluation.generation import generate_answers
from ofmu.evaluation.rouge import rouge_l_recall
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, row_hash
from ofmu.evaluation.sharding import Shard

if TYPE_CHECKING:
    from ofmu.config import DataConfig, UnlearnConfig

NO_GENERATION = "no text was generated, since evaluation.rouge is false"
NO_QUESTION = "plain text rows have no question to answer"


class _Key(NamedTuple):
    set_name: str
    row: int
    variant: int
    """0: the answer, 1: the paraphrased answer, 2 and on: the perturbed answers."""


def score_model(
    model: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    config: UnlearnConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    synchronized: bool = False,
    name: str | None = None,
) -> Scores:
    """Score a causal LM on every evaluation set of ``data``; every rank gets all the scores.

    ``synchronized``: every forward pass is a collective (ZeRO-3), so all ranks run equally many. ``name`` is what
    reports call the model. The model is put into evaluation mode and left in the mode it had.

    Raises:
        DataError: a row cannot be encoded, or leaves the model no room to answer.
    """
    shard = Shard(rank=rank, world_size=world_size, synchronized=synchronized)
    examples = dict(_examples(tokenizer, data, config.data))
    questions = _questions(data) if config.evaluation.rouge else {}
    with _evaluation_mode(model):
        losses = score_examples(model, tokenizer, list(examples.values()), config.evaluation.batch_size, shard)
        texts = generate_answers(model, tokenizer, list(questions.values()), config, shard)
    forced = dict(zip(examples, losses, strict=True))
    generated = dict(zip(questions, texts, strict=True))
    sets = {
        set_name: tuple(
            _row_scores(row, set_name, index, forced, generated.get((set_name, index)))
            for index, row in enumerate(row_set.rows)
        )
        for set_name, row_set in data.evaluation.items()
    }
    return Scores(
        model=name or getattr(model.config, "_name_or_path", "") or "the model",
        truth_ratio=config.evaluation.truth_ratio,
        sets=sets,
        data_hash=data.content_hash,
        notes={"rouge": NO_QUESTION if config.evaluation.rouge else NO_GENERATION},
    )


def _examples(tokenizer: Tokenizer, data: UnlearnData, config: DataConfig) -> Iterator[tuple[_Key, Example]]:
    for set_name, row_set in data.evaluation.items():
        for index, row in enumerate(row_set.rows):
            answers = [row.answer, row.paraphrased_answer, *row.perturbed_answers]
            for variant, answer in enumerate(answers):
                if answer is not None:
                    yield _Key(set_name, index, variant), encode_example(tokenizer, row.question, answer, config)


def _questions(data: UnlearnData) -> dict[tuple[str, int], str]:
    return {
        (set_name, index): row.question
        for set_name, row_set in data.evaluation.items()
        for index, row in enumerate(row_set.rows)
        if row.question
    }


def _row_scores(
    row: Row, set_name: str, index: int, forced: dict[_Key, ForcedScore], generated: str | None
) -> RowScores:
    answer = forced[_Key(set_name, index, 0)]
    paraphrased = forced.get(_Key(set_name, index, 1))
    wrong = [forced[_Key(set_name, index, 2 + number)] for number in range(len(row.perturbed_answers))]
    return RowScores(
        question=row.question,
        ground_truth=row.answer,
        row_hash=row_hash(row),
        answer=_loss(answer),
        paraphrased=None if paraphrased is None else _loss(paraphrased),
        perturbed=tuple(map(_loss, wrong)),
        generated=generated,
        rouge=None if generated is None else rouge_l_recall(row.answer, generated),
        extraction_strength=answer.extraction_strength,
        exact_memorization=answer.exact_memorization,
    )


def _loss(score: ForcedScore) -> AnswerLoss:
    return AnswerLoss(score.nll, score.tokens)


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
