"""Scores of a model on the evaluation sets, sharded over ranks.

Batches are formed over all rows before they are distributed to ranks. So a row shares its batch with the same rows for
any number of ranks, and its scores are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer
from ofmu.data.row_encoder import RowEncoder, with_prompting
from ofmu.data.rows import Example, Prompting, Row, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.in_scope import in_scope_sets
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, hash_sample, row_hash
from ofmu.evaluation.scoring.chunks import join_norms, join_scores
from ofmu.evaluation.scoring.generation import GeneratedAnswer, generate_answers
from ofmu.evaluation.scoring.gradients import gradient_norms
from ofmu.evaluation.scoring.multiple_choice import score_questions
from ofmu.evaluation.scoring.rouge import rouge_l_f1, rouge_l_recall
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import AnswerScore, score_examples
from ofmu.evaluation.sets import FORGET, HOLDOUT, IN_SCOPE_PREFIX, MEMBERS

NO_GENERATION = "no text was generated, since evaluation.rouge is false"
NO_QUESTION = "plain text rows have no question to answer"
NO_HOLDOUT = "the data has no holdout rows: set data.holdout"
NO_WHOLE_GRADIENT = "under ZeRO-3 no rank holds a whole gradient: run ofmu evaluate on the saved model"
NO_IN_SCOPE = "no forget row has a paraphrased, multi-hop or translated question"

_Sets = Mapping[str, tuple[Row, ...]]
ValueT = TypeVar("ValueT")


class _AnswerKey(NamedTuple):
    set_name: str
    row: int
    variant: int
    """0: the answer. 1: the paraphrased answer. 2 and above: the perturbed answers."""


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
    """Score a causal LM on every evaluation set. Return all scores on every rank.

    Args:
        model: the model. It runs in evaluation mode and returns to its own mode.
        tokenizer: the model's tokenizer.
        data: the evaluation sets, the multiple-choice questions and the holdout rows.
        evaluation: selects the scores. ``in_scope`` adds the hard sets, and ``membership`` adds the holdout rows.
        encoding: the data section, which rules how rows become tokens.
        rank: this process's rank.
        world_size: number of ranks.
        synchronized: every forward pass is a collective (ZeRO-3), so all ranks must run equally many.
        name: the model's name in reports. None: the name in the model's config.

    Raises:
        DataError: a row cannot be encoded, or a prompt fills all positions of the model.
    """
    shard = Shard(rank=rank, world_size=world_size, synchronized=synchronized)
    sets = scored_sets(data, evaluation)
    prompting = {name: own for name in data.evaluation if (own := data.prompting_of(name)) is not None}
    examples = _examples(model, tokenizer, sets, encoding, prompting)
    chunks = [(key, chunk) for key, answer_chunks in examples.items() for chunk in answer_chunks]
    attacked = _attacked_answers(sets, evaluation)
    questions = _questions(sets) if evaluation.rouge else {}
    with evaluation_mode(model):
        answer_scores, forced_tokens = score_examples(
            model,
            tokenizer,
            [chunk for _, chunk in chunks],
            evaluation.batch_size,
            shard,
            labels=[key.set_name for key, _ in chunks],
            detailed=[index for index, (key, _) in enumerate(chunks) if key in attacked],
        )
        texts = _generate(model, tokenizer, questions, evaluation, encoding, shard, prompting)
        with_gradients = {} if synchronized else {key: examples[key] for key in examples if key in attacked}
        norms, gradient_tokens = gradient_norms(model, list(chain.from_iterable(with_gradients.values())), shard)
        choices, choice_tokens = score_questions(
            model,
            tokenizer,
            data.questions,
            batch_size=evaluation.batch_size,
            max_length=encoding.max_length,
            shard=shard,
        )
    results = _PassResults(
        answers={
            key: join_scores(examples[key], scores, tokenizer.eos_token_id)
            for key, scores in _grouped(examples, answer_scores).items()
        },
        texts=texts,
        with_f1=frozenset(prompting),
        parts={name: row_set.parts for name, row_set in data.evaluation.items()},
        gradient_norms={
            key: join_norms(examples[key], values) for key, values in _grouped(with_gradients, norms).items()
        },
    )
    return Scores(
        model=name or getattr(model.config, "_name_or_path", "") or "the model",
        truth_ratio=evaluation.truth_ratio,
        sets={
            set_name: tuple(results.row_scores(row, set_name, index) for index, row in enumerate(rows))
            for set_name, rows in sets.items()
        },
        data_hash=data.content_hash,
        notes=_notes(sets, evaluation, synchronized),
        forward_tokens={
            "forced": forced_tokens,
            "generated": sum(text.tokens for text in texts.values()),
            "gradient": gradient_tokens,
            "choices": choice_tokens,
        },
        choices=choices,
    )


def scored_sets(data: UnlearnData, evaluation: EvaluationConfig) -> _Sets:
    """Return the rows of each evaluation set that are scored."""
    limit = evaluation.max_rows
    sets = {name: row_set.rows for name, row_set in data.evaluation.items()}
    if limit is not None:
        # The forget set is kept whole: it is small, a reference must cover its rows, and its size sets the resolution
        # of forget quality.
        sets = {
            name: rows if name == FORGET else tuple(rows[index] for index in hash_sample(rows, limit))
            for name, rows in sets.items()
        }
    if not evaluation.membership:
        sets.pop(MEMBERS, None)
    if evaluation.in_scope:
        sets |= in_scope_sets(data)
    if evaluation.membership and data.holdout is not None and FORGET in sets:
        sets[HOLDOUT] = data.holdout.rows
    return sets


def _attacked_answers(sets: _Sets, evaluation: EvaluationConfig) -> frozenset[_AnswerKey]:
    """Return the answers that membership attacks read."""
    if not evaluation.membership or HOLDOUT not in sets:
        return frozenset()
    names = (MEMBERS if MEMBERS in sets else FORGET, HOLDOUT)
    return frozenset(_AnswerKey(name, index, 0) for name in names for index in range(len(sets[name])))


def _notes(sets: _Sets, evaluation: EvaluationConfig, synchronized: bool) -> dict[str, str]:
    notes = {"rouge": NO_QUESTION if evaluation.rouge else NO_GENERATION}
    if evaluation.membership and HOLDOUT not in sets:
        notes["membership"] = NO_HOLDOUT
    elif evaluation.membership and synchronized:
        notes["gradient_norm"] = NO_WHOLE_GRADIENT
    if evaluation.in_scope and not any(name.startswith(IN_SCOPE_PREFIX) for name in sets):
        notes["in_scope"] = NO_IN_SCOPE
    return notes


def with_token_limit(evaluation: EvaluationConfig, prompting: Prompting | None) -> EvaluationConfig:
    """Return the evaluation section with the bound on generated tokens of a set."""
    if prompting is None:
        return evaluation
    return evaluation.model_copy(update={"max_new_tokens": prompting.max_new_tokens})


def _generate(
    model: Any,
    tokenizer: Tokenizer,
    questions: Mapping[tuple[str, int], str],
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    shard: Shard,
    prompting: Mapping[str, Prompting],
) -> dict[tuple[str, int], GeneratedAnswer]:
    """Return the greedy answers by set and row. Sets with prompts of their own are generated one after the other."""
    answers: dict[tuple[str, int], GeneratedAnswer] = {}
    for own in (None, *prompting):
        chosen = {key: text for key, text in questions.items() if (key[0] if key[0] in prompting else None) == own}
        prompts = None if own is None else prompting[own]
        texts = generate_answers(
            model,
            tokenizer,
            list(chosen.values()),
            with_token_limit(evaluation, prompts),
            with_prompting(encoding, prompts),
            shard,
            [set_name for set_name, _ in chosen],
        )
        answers |= dict(zip(chosen, texts, strict=True))
    return answers


def _examples(
    model: Any, tokenizer: Tokenizer, sets: _Sets, encoding: DataConfig, prompting: Mapping[str, Prompting]
) -> dict[_AnswerKey, tuple[Example, ...]]:
    """Return the chunks of every answer. Only plain text has more than one chunk."""
    common, examples = RowEncoder(tokenizer, encoding, model.config), dict[_AnswerKey, tuple[Example, ...]]()
    for set_name, rows in sets.items():
        own = prompting.get(set_name)
        encoder = common if own is None else RowEncoder(tokenizer, encoding, model.config, own)
        for index, row in enumerate(rows):
            # Holdout rows have no truth ratio, so only their answers are scored.
            others = () if set_name == HOLDOUT else (row.paraphrased_answer, *row.perturbed_answers)
            for variant, answer in enumerate([row.answer, *others]):
                if answer is not None:
                    key = _AnswerKey(set_name, index, variant)
                    examples[key] = encoder.encode(f"evaluation set {set_name}", row.question, answer)
        if encoder is not common:
            encoder.warn_of_cuts()
    common.warn_of_cuts()
    return examples


def _grouped(
    examples: Mapping[_AnswerKey, Sequence[Example]], values: Sequence[ValueT]
) -> dict[_AnswerKey, list[ValueT]]:
    """Return the values of each answer's chunks. ``values`` holds one value for each chunk, in order."""
    rest = iter(values)
    return {key: [next(rest) for _ in chunks] for key, chunks in examples.items()}


def _questions(sets: _Sets) -> dict[tuple[str, int], str]:
    return {
        (set_name, index): row.question
        for set_name, rows in sets.items()
        for index, row in enumerate(rows)
        if row.question and set_name != HOLDOUT
    }


class _PassResults(NamedTuple):
    """Results of the forward and backward passes over all rows."""

    answers: Mapping[_AnswerKey, AnswerScore]
    texts: Mapping[tuple[str, int], GeneratedAnswer]
    gradient_norms: Mapping[_AnswerKey, float]
    with_f1: frozenset[str]
    """Names of the sets whose generated texts get ROUGE-L F1."""
    parts: Mapping[str, Mapping[str, str]]
    """By set: the part of each row."""

    def row_scores(self, row: Row, set_name: str, index: int) -> RowScores:
        """Return the scores of the row at ``index`` of a set."""
        key = _AnswerKey(set_name, index, 0)
        answer, paraphrased = self.answers[key], self.answers.get(_AnswerKey(set_name, index, 1))
        perturbed = [
            self.answers.get(_AnswerKey(set_name, index, 2 + number)) for number in range(len(row.perturbed_answers))
        ]
        text = self.texts.get((set_name, index))
        return RowScores(
            question=row.question,
            ground_truth=row.answer,
            row_hash=row_hash(row),
            answer=_loss(answer),
            paraphrased=None if paraphrased is None else _loss(paraphrased),
            perturbed=tuple(_loss(score) for score in perturbed if score is not None),
            generated=None if text is None else text.text,
            rouge=None if text is None else rouge_l_recall(row.answer, text.text),
            rouge_f1=rouge_l_f1(row.answer, text.text) if text is not None and set_name in self.with_f1 else None,
            part=self.parts.get(set_name, {}).get(row_hash(row)),
            extraction_strength=answer.extraction_strength,
            exact_memorization=answer.exact_memorization,
            min_k=answer.min_k,
            min_k_plus=answer.min_k_plus,
            gradient_norm=self.gradient_norms.get(key),
        )


def _loss(score: AnswerScore) -> AnswerLoss:
    return AnswerLoss(score.nll, score.tokens)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Keep a model in evaluation mode inside the block. Its own mode returns afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
