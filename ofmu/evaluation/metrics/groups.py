"""Groups of metrics beyond the spine's: membership attacks, hard in-scope sets and fluency, from per-row scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from ofmu.evaluation.metrics import fluency
from ofmu.evaluation.metrics import formulas as formulas
from ofmu.evaluation.metrics import membership as attacks
from ofmu.evaluation.metrics.choices import ChoiceScores, choice_accuracy, is_finite, letter_accuracy
from ofmu.evaluation.metrics.row_values import (
    Computations,
    MissingScoresError,
    NonFiniteError,
    answer_losses,
    finite,
    log_ratios,
    probability,
    row_mean,
    row_values,
    rows_of,
    truth_ratio,
)
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.sets import FORGET, HOLDOUT, IN_SCOPE

_RowNumbers = Callable[[Scores, Scores | None, str], Sequence[float]]


def membership_group(scores: Scores, reference: Scores | None) -> Computations:
    """Return the attacks' AUC and the privacy leakage; nothing where membership was not asked for."""
    if HOLDOUT not in scores.sets and "membership" not in scores.notes:
        return {}
    numbers: dict[str, _RowNumbers] = {
        "loss": lambda mine, _, name: answer_losses(mine, name).tolist(),
        "zlib": lambda mine, _, name: _zlib(mine, name),
        "min_k": lambda mine, _, name: _attack_values(mine, name, "min_k"),
        "min_k_plus": lambda mine, _, name: _attack_values(mine, name, "min_k_plus"),
        "reference": _beyond_reference,
        "gradient_norm": lambda mine, _, name: _attack_values(mine, name, "gradient_norm"),
    }
    made = {f"membership_{attack}": partial(_auc, scores, reference, rows) for attack, rows in numbers.items()}
    return made | {"privacy_leakage": partial(_leakage, scores, reference)}


def choice_group(scores: Scores) -> Computations:
    """Return the accuracies on multiple-choice questions; nothing where the data has none."""
    ways = {"letter": letter_accuracy, "choice": choice_accuracy}
    return {
        f"{name}_{way}_accuracy": partial(_accuracy, scores, name, compute)
        for name in scores.choices
        for way, compute in ways.items()
    }


def _accuracy(scores: Scores, name: str, compute: Callable[[Sequence[ChoiceScores]], float]) -> float:
    questions = scores.choices[name]
    if not is_finite(questions):
        raise NonFiniteError(f"'{scores.model}' gives a non-finite likelihood on the {name} questions")
    return compute(questions)


def _auc(scores: Scores, reference: Scores | None, rows: _RowNumbers) -> float:
    if "membership" in scores.notes:
        raise MissingScoresError(scores.notes["membership"])
    return attacks.auc(rows(scores, reference, FORGET), rows(scores, reference, HOLDOUT))


def _zlib(scores: Scores, name: str) -> list[float]:
    losses = answer_losses(scores, name)
    return [attacks.zlib_ratio(loss, row.ground_truth) for loss, row in zip(losses, scores.sets[name], strict=True)]


def _attack_values(scores: Scores, name: str, attribute: str) -> list[float]:
    answer_losses(scores, name)  # a non-finite loss is the reason where the statistics were not finite either
    return [float(value) for value in finite(scores, name, row_values(scores, name, attribute))]


def _beyond_reference(scores: Scores, reference: Scores | None, name: str) -> list[float]:
    other = _matching(scores, reference, name, "evaluation.membership")
    return [float(gap) for gap in answer_losses(scores, name) - answer_losses(other, name)]


def _leakage(scores: Scores, reference: Scores | None) -> float:
    mine = _auc(scores, reference, lambda own, _, name: _attack_values(own, name, "min_k"))
    for name in (FORGET, HOLDOUT):
        _matching(scores, reference, name, "evaluation.membership")
    assert reference is not None
    theirs = attacks.auc(*(_attack_values(reference, name, "min_k") for name in (FORGET, HOLDOUT)))
    try:
        return attacks.privacy_leakage(mine, theirs)
    except ValueError as error:
        raise MissingScoresError(str(error)) from error


def _matching(scores: Scores, reference: Scores | None, name: str, switch: str) -> Scores:
    """Return the reference if it covers the same rows of a set."""
    if reference is None:
        raise MissingScoresError("no reference was given")
    ours, theirs = rows_of(scores, name), reference.sets.get(name, ())
    if not theirs:
        raise MissingScoresError(f"the reference has no scores of the set '{name}': score it with {switch} true")
    if name != FORGET and [row.row_hash for row in ours] != [row.row_hash for row in theirs]:
        raise MissingScoresError(f"the reference was scored on other rows of the set '{name}'")
    return reference


def in_scope_group(scores: Scores, reference: Scores | None) -> Computations:
    """Return each hard set's metrics and the spread over the sets; nothing where they were not asked for."""
    if "in_scope" not in scores.notes and not any(name.startswith("in_scope_") for name in scores.sets):
        return {}
    made: dict[str, Callable[[], float]] = {}
    qualities: list[Callable[[], formulas.ForgetQuality]] = []
    for short in IN_SCOPE:
        name = f"in_scope_{short}"
        quality = cache(partial(_quality, scores, reference, name))
        qualities.append(quality)
        made |= {
            f"{name}_probability": partial(_in_scope, probability, scores, name),
            f"{name}_rouge": partial(_in_scope, partial(_mean_of, "rouge"), scores, name),
            f"{name}_truth_ratio": partial(_in_scope, truth_ratio, scores, name),
            f"{name}_extraction_strength": partial(_in_scope, partial(_mean_of, "extraction_strength"), scores, name),
            f"{name}_exact_memorization": partial(_in_scope, partial(_mean_of, "exact_memorization"), scores, name),
            f"{name}_ks_statistic": partial(_field, quality, "statistic"),
            f"{name}_forget_quality": partial(_field, quality, "p_value"),
            f"{name}_log10_forget_quality": partial(_field, quality, "log10_p_value"),
        }
    made["in_scope_forget_quality_variance"] = partial(_variance, qualities, "p_value")
    made["in_scope_ks_variance"] = partial(_variance, qualities, "statistic")
    return made


def _mean_of(attribute: str, scores: Scores, name: str) -> float:
    return row_mean(scores, name, attribute)


def _in_scope(compute: Callable[[Scores, str], float], scores: Scores, name: str) -> float:
    if name not in scores.sets:
        questions = {"paraphrase": "paraphrased", "multi_hop": "multi-hop", "translation": "translated"}
        raise MissingScoresError(f"no forget row has a {questions[name.removeprefix('in_scope_')]} question")
    return compute(scores, name)


def _quality(scores: Scores, reference: Scores | None, name: str) -> formulas.ForgetQuality:
    _in_scope(lambda *_: 0.0, scores, name)
    other = _matching(scores, reference, name, "evaluation.in_scope")
    return formulas.forget_quality(log_ratios(scores, name), log_ratios(other, name))


def _field(quality: Callable[[], formulas.ForgetQuality], field: str) -> float:
    return float(getattr(quality(), field))


def _variance(qualities: Sequence[Callable[[], formulas.ForgetQuality]], field: str) -> float:
    """Return the population variance over the hard sets that have a forget quality, at least two."""
    values, reason = [], ""
    for quality in qualities:
        try:
            values.append(_field(quality, field))
        except MissingScoresError as error:
            reason = str(error)
    if len(values) < 2:
        raise MissingScoresError(f"fewer than two hard sets have a forget quality ({reason})")
    return float(np.var(values))


def fluency_group(scores: Scores) -> Computations:
    """Return variety, repetition and length of the answers generated to the forget questions."""
    made: dict[str, Callable[[], float]] = {
        f"forget_distinct_{n}": partial(_of_texts, scores, partial(fluency.distinct, n=n), n) for n in (1, 2, 3)
    }
    made["forget_repetition"] = partial(_of_texts, scores, fluency.repetition, fluency.REPEATED)
    made["forget_answer_words"] = partial(_of_texts, scores, fluency.mean_words, 0)
    return made


def _of_texts(scores: Scores, compute: Callable[[Sequence[str]], float | None], words: int) -> float:
    texts = [row.generated for row in rows_of(scores, FORGET)]
    known = [text for text in texts if text is not None]
    if len(known) < len(texts):
        raise MissingScoresError(
            scores.notes.get("rouge", f"{len(texts) - len(known)} forget rows have no generated text")
        )
    value = compute(known)
    if value is None:
        raise MissingScoresError(f"no generated answer has {words} words")
    return value
