"""Scores of a model on the evaluation sets: teacher forcing and greedy generation, sharded over ranks.

Batches are formed over all rows before they are dealt to ranks, so a row always shares its batch with the same
rows, whatever the number of ranks, and its scores are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_example
from ofmu.data.rows import Example, Row, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.in_scope import in_scope_sets
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, hash_sample, row_hash
from ofmu.evaluation.scoring.generation import Generated, generate_answers
from ofmu.evaluation.scoring.gradients import gradient_norms
from ofmu.evaluation.scoring.multiple_choice import score_questions
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import AnswerScore, score_examples
from ofmu.evaluation.sets import FORGET, HOLDOUT

NO_GENERATION = "no text was generated, since evaluation.rouge is false"
NO_QUESTION = "plain text rows have no question to answer"
NO_HOLDOUT = "the data has no holdout rows: set data.holdout"
NO_WHOLE_GRADIENT = "under ZeRO-3 no rank holds a whole gradient: run ofmu evaluate on the saved model"
NO_IN_SCOPE = "no forget row has a paraphrased, multi-hop or translated question"

_Sets = Mapping[str, tuple[Row, ...]]


class _Key(NamedTuple):
    set_name: str
    row: int
    variant: int
    """0: the answer, 1: the paraphrased answer, 2 and on: the perturbed answers."""


def score_model(
    model: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    synchronized: bool = False,
    name: str | None = None,
) -> Scores:
    """Score a causal LM on every evaluation set of ``data``; every rank gets all the scores.

    The sets of ``evaluation.in_scope`` and, for ``evaluation.membership``, the holdout rows come with them.
    ``synchronized``: every forward pass is a collective (ZeRO-3), so all ranks run equally many. ``name`` is what
    reports call the model. The model is put into evaluation mode and left in the mode it had.

    Raises:
        DataError: a row cannot be encoded, or leaves the model no room to answer.
    """
    shard = Shard(rank=rank, world_size=world_size, synchronized=synchronized)
    sets = _scored_sets(data, evaluation)
    examples = dict(_examples(tokenizer, sets, encoding))
    attacked = _attacked(sets, evaluation)
    questions = _questions(sets) if evaluation.rouge else {}
    with _evaluation_mode(model):
        losses, forced_tokens = score_examples(
            model,
            tokenizer,
            list(examples.values()),
            evaluation.batch_size,
            shard,
            labels=[key.set_name for key in examples],
            detailed=[place for place, key in enumerate(examples) if key in attacked],
        )
        asked = [set_name for set_name, _ in questions]
        texts = generate_answers(model, tokenizer, list(questions.values()), evaluation, encoding, shard, asked)
        measured = [] if synchronized else [key for key in examples if key in attacked]
        norms, gradient_tokens = gradient_norms(model, [examples[key] for key in measured], shard)
        choices, choice_tokens = score_questions(
            model,
            tokenizer,
            data.questions,
            batch_size=evaluation.batch_size,
            max_length=encoding.max_length,
            shard=shard,
        )
    found = _Found(
        forced=dict(zip(examples, losses, strict=True)),
        generated=dict(zip(questions, texts, strict=True)),
        norms=dict(zip(measured, norms, strict=True)),
    )
    generated_tokens = sum(text.tokens for text in texts)
    return Scores(
        model=name or getattr(model.config, "_name_or_path", "") or "the model",
        truth_ratio=evaluation.truth_ratio,
        sets={
            name: tuple(found.row(row, name, index) for index, row in enumerate(rows)) for name, rows in sets.items()
        },
        data_hash=data.content_hash,
        notes=_notes(sets, evaluation, synchronized),
        forward_tokens={
            "forced": forced_tokens,
            "generated": generated_tokens,
            "gradient": gradient_tokens,
            "choices": choice_tokens,
        },
        choices=choices,
    )


def _scored_sets(data: UnlearnData, evaluation: EvaluationConfig) -> _Sets:
    limit = evaluation.max_rows
    sets = {name: row_set.rows for name, row_set in data.evaluation.items()}
    if limit is not None:
        # forget rows are few, are what a reference is matched by, and set the resolution of forget quality
        sets = {
            name: rows if name == FORGET else tuple(rows[place] for place in hash_sample(rows, limit))
            for name, rows in sets.items()
        }
    if evaluation.in_scope:
        sets |= in_scope_sets(data)
    if evaluation.membership and data.holdout is not None and FORGET in sets:
        sets[HOLDOUT] = data.holdout.rows
    return sets


def _attacked(sets: _Sets, evaluation: EvaluationConfig) -> frozenset[_Key]:
    """Return the answers whose tokens membership attacks look at."""
    if not evaluation.membership or HOLDOUT not in sets:
        return frozenset()
    return frozenset(_Key(name, index, 0) for name in (FORGET, HOLDOUT) for index in range(len(sets[name])))


def _notes(sets: _Sets, evaluation: EvaluationConfig, synchronized: bool) -> dict[str, str]:
    notes = {"rouge": NO_QUESTION if evaluation.rouge else NO_GENERATION}
    if evaluation.membership and HOLDOUT not in sets:
        notes["membership"] = NO_HOLDOUT
    elif evaluation.membership and synchronized:
        notes["gradient_norm"] = NO_WHOLE_GRADIENT
    if evaluation.in_scope and not any(name.startswith("in_scope_") for name in sets):
        notes["in_scope"] = NO_IN_SCOPE
    return notes


def _examples(tokenizer: Tokenizer, sets: _Sets, config: DataConfig) -> Iterator[tuple[_Key, Example]]:
    for set_name, rows in sets.items():
        for index, row in enumerate(rows):
            # No truth ratio is taken of holdout rows, so their other answers are not read.
            others = () if set_name == HOLDOUT else (row.paraphrased_answer, *row.perturbed_answers)
            for variant, answer in enumerate([row.answer, *others]):
                if answer is not None:
                    yield _Key(set_name, index, variant), encode_example(tokenizer, row.question, answer, config)


def _questions(sets: _Sets) -> dict[tuple[str, int], str]:
    return {
        (set_name, index): row.question
        for set_name, rows in sets.items()
        for index, row in enumerate(rows)
        if row.question and set_name != HOLDOUT
    }


class _Found(NamedTuple):
    """What the passes over all rows gave, by row."""

    forced: Mapping[_Key, AnswerScore]
    generated: Mapping[tuple[str, int], Generated]
    norms: Mapping[_Key, float]

    def row(self, row: Row, set_name: str, index: int) -> RowScores:
        own = _Key(set_name, index, 0)
        answer, paraphrased = self.forced[own], self.forced.get(_Key(set_name, index, 1))
        wrong = [self.forced.get(_Key(set_name, index, 2 + number)) for number in range(len(row.perturbed_answers))]
        text = self.generated.get((set_name, index))
        return RowScores(
            question=row.question,
            ground_truth=row.answer,
            row_hash=row_hash(row),
            answer=_loss(answer),
            paraphrased=None if paraphrased is None else _loss(paraphrased),
            perturbed=tuple(_loss(score) for score in wrong if score is not None),
            generated=None if text is None else text.text,
            rouge=None if text is None else rouge_l_recall(row.answer, text.text),
            extraction_strength=answer.extraction_strength,
            exact_memorization=answer.exact_memorization,
            min_k=answer.min_k,
            min_k_plus=answer.min_k_plus,
            gradient_norm=self.norms.get(own),
        )


def _loss(score: AnswerScore) -> AnswerLoss:
    return AnswerLoss(score.nll, score.tokens)


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
