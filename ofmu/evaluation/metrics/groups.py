"""Groups of metrics beside TOFU's: multiple choice, membership attacks, hard in-scope sets and fluency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from ofmu.evaluation.matching import same_row
from ofmu.evaluation.metrics import fluency, formulas, membership
from ofmu.evaluation.metrics.choices import all_finite, choice_accuracy, letter_accuracy
from ofmu.evaluation.metrics.row_values import (
    LazyMetrics,
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
from ofmu.evaluation.scores import ChoiceScores, RowScores, Scores, compressed_size
from ofmu.evaluation.sets import (
    FORGET,
    FORGET_KNOWLEDGE,
    HOLDOUT,
    IN_SCOPE_KINDS,
    IN_SCOPE_PREFIX,
    LUME_PARTS,
    MEMBERS,
    RETAIN,
    RETAIN_KNOWLEDGE,
    RWKU_PROBES,
    RWKU_TEXTS,
)

_AttackValues = Callable[[Scores, Scores | None, str], Sequence[float]]
"""From scores, the reference's scores and a set's name to one number per row of the set."""


def membership_group(scores: Scores, reference: Scores | None) -> LazyMetrics:
    """Return the AUC of each membership attack, and privacy leakage.

    Empty if ``evaluation.membership`` was false.
    """
    if HOLDOUT not in scores.sets and "membership" not in scores.notes:
        return {}
    attacks: dict[str, _AttackValues] = {
        "loss": lambda model, _, name: answer_losses(model, name).tolist(),
        "zlib": lambda model, _, name: _zlib_ratios(model, name),
        "min_k": lambda model, _, name: _attack_values(model, name, "min_k"),
        "min_k_plus": lambda model, _, name: _attack_values(model, name, "min_k_plus"),
        "reference": _losses_above_reference,
        "gradient_norm": lambda model, _, name: _attack_values(model, name, "gradient_norm"),
    }
    aucs = {f"membership_{attack}": partial(_auc, scores, reference, values) for attack, values in attacks.items()}
    return aucs | {"privacy_leakage": partial(_privacy_leakage, scores, reference)}


def choice_group(scores: Scores) -> LazyMetrics:
    """Return the accuracies on multiple-choice questions. Empty if the data has none."""
    accuracies = {"letter": letter_accuracy, "choice": choice_accuracy}
    return {
        f"{name}_{kind}_accuracy": partial(_accuracy, scores, name, compute)
        for name in scores.choices
        for kind, compute in accuracies.items()
    }


def _accuracy(scores: Scores, name: str, compute: Callable[[Sequence[ChoiceScores]], float]) -> float:
    questions = scores.choices[name]
    if not all_finite(questions):
        raise NonFiniteError(f"'{scores.model}' gives a non-finite likelihood on the {name} questions")
    return compute(questions)


def _auc(scores: Scores, reference: Scores | None, values: _AttackValues) -> float:
    if "membership" in scores.notes:
        raise MissingScoresError(scores.notes["membership"])
    return membership.auc(values(scores, reference, _members(scores)), values(scores, reference, HOLDOUT))


def _members(scores: Scores) -> str:
    """Return the name of the set of forget texts that attacks compare with the holdout rows."""
    return MEMBERS if MEMBERS in scores.sets else FORGET


def _zlib_ratios(scores: Scores, name: str) -> list[float]:
    losses, sizes = answer_losses(scores, name), [compressed_size(row) for row in scores.sets[name]]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise MissingScoresError(f"the scores of the set '{name}' hold neither texts nor sizes of compressed texts")
    return [membership.zlib_ratio(float(loss), size) for loss, size in zip(losses, known, strict=True)]


def _attack_values(scores: Scores, name: str, attribute: str) -> list[float]:
    answer_losses(scores, name)  # If a loss is not finite, the loss is the better reason.
    return [float(value) for value in finite(scores, name, row_values(scores, name, attribute))]


def _losses_above_reference(scores: Scores, reference: Scores | None, name: str) -> list[float]:
    if reference is None and all(row.loss_above_reference is not None for row in rows_of(scores, name)):
        return _attack_values(scores, name, "loss_above_reference")
    matching = _matching_reference(scores, reference, name, "evaluation.membership")
    return [float(gap) for gap in answer_losses(scores, name) - answer_losses(matching, name)]


def _privacy_leakage(scores: Scores, reference: Scores | None) -> float:
    model_auc = _auc(scores, reference, lambda model, _, name: _attack_values(model, name, "min_k"))
    names = (_members(scores), HOLDOUT)
    for name in names:
        _matching_reference(scores, reference, name, "evaluation.membership")
    assert reference is not None
    reference_auc = membership.auc(*(_attack_values(reference, name, "min_k") for name in names))
    try:
        return membership.privacy_leakage(model_auc, reference_auc)
    except ValueError as error:
        raise MissingScoresError(str(error)) from error


def _matching_reference(scores: Scores, reference: Scores | None, name: str, key: str) -> Scores:
    """Return the reference if it covers the same rows of a set. ``key`` is the config key that scores the set."""
    if reference is None:
        raise MissingScoresError("no reference was given")
    rows, reference_rows = rows_of(scores, name), reference.sets.get(name, ())
    if not reference_rows:
        raise MissingScoresError(f"the reference has no scores of the set '{name}': score it with {key} true")
    if name != FORGET and not _same_rows(rows, reference_rows):
        raise MissingScoresError(f"the reference was scored on other rows of the set '{name}'")
    return reference


def _same_rows(rows: Sequence[RowScores], others: Sequence[RowScores]) -> bool:
    return len(rows) == len(others) and all(map(same_row, rows, others))


def knowledge_group(scores: Scores) -> LazyMetrics:
    """Return the memorisation metrics of MUSE. Empty for other data."""
    names = {FORGET_KNOWLEDGE, RETAIN_KNOWLEDGE} & scores.sets.keys()
    verbatim = {"verbatim_memorization": partial(row_mean, scores, FORGET, "rouge_f1")} if names else {}
    return verbatim | {f"{name}_memorization": partial(row_mean, scores, name, "rouge_f1") for name in sorted(names)}


def rwku_group(scores: Scores) -> LazyMetrics:
    """Return RWKU's metrics: ROUGE-L recall of each kind of probe, and mean losses of texts. Empty for other data."""
    if RWKU_PROBES["rwku_forget_fb"] not in scores.sets:
        return {}
    probes = {metric: partial(row_mean, scores, name, "rouge") for metric, name in RWKU_PROBES.items()}
    return probes | {metric: partial(_mean_loss, scores, name) for metric, name in RWKU_TEXTS.items()}


def _mean_loss(scores: Scores, name: str) -> float:
    return float(answer_losses(scores, name).mean())


def lume_group(scores: Scores) -> LazyMetrics:
    """Return the parts of LUME's task aggregate, and the aggregate. Empty for other data."""
    if not any(row.part for name in (FORGET, RETAIN) for row in scores.sets.get(name, ())):
        return {}
    parts = {
        f"{name}_{part}": partial(_lume_part, scores, name, part) for name in (FORGET, RETAIN) for part in LUME_PARTS
    }
    return parts | {"lume_task_aggregate": partial(_lume_aggregate, parts)}


def _lume_part(scores: Scores, name: str, part: str) -> float:
    """Return mean ROUGE-L recall of completions, or the share of questions whose answer is right but for case."""
    rows = [row for row in rows_of(scores, name) if row.part == part]
    if not rows:
        raise MissingScoresError(f"the set '{name}' has no rows of the part {part}")
    if any(row.generated is None or row.rouge is None for row in rows):
        raise MissingScoresError(scores.notes.get("rouge", f"rows of the part {part} have no generated text"))
    if part.endswith("regurgitation"):
        return float(np.mean([row.rouge or 0.0 for row in rows]))
    return float(np.mean([(row.generated or "").strip().lower() == row.ground_truth.strip().lower() for row in rows]))


def _lume_aggregate(parts: LazyMetrics) -> float:
    """Return the harmonic mean of the retain parts and of 1 − each forget part."""
    values = {name: compute() for name, compute in parts.items()}
    return formulas.harmonic_mean([1 - v if name.startswith(FORGET) else v for name, v in values.items()])


def in_scope_group(scores: Scores, reference: Scores | None) -> LazyMetrics:
    """Return the metrics of each hard set, and the variance over the sets.

    Empty if ``evaluation.in_scope`` was false.
    """
    if "in_scope" not in scores.notes and not any(name.startswith(IN_SCOPE_PREFIX) for name in scores.sets):
        return {}
    metrics: dict[str, Callable[[], float]] = {}
    qualities: list[Callable[[], formulas.ForgetQuality]] = []
    for kind in IN_SCOPE_KINDS:
        name = f"{IN_SCOPE_PREFIX}{kind}"
        quality = cache(partial(_in_scope_quality, scores, reference, kind))
        qualities.append(quality)
        metrics |= {
            f"{name}_probability": partial(_in_scope, probability, scores, kind),
            f"{name}_rouge": partial(_in_scope, partial(_mean_of, "rouge"), scores, kind),
            f"{name}_truth_ratio": partial(_in_scope, truth_ratio, scores, kind),
            f"{name}_extraction_strength": partial(_in_scope, partial(_mean_of, "extraction_strength"), scores, kind),
            f"{name}_exact_memorization": partial(_in_scope, partial(_mean_of, "exact_memorization"), scores, kind),
            f"{name}_ks_statistic": partial(_field, quality, "statistic"),
            f"{name}_forget_quality": partial(_field, quality, "p_value"),
            f"{name}_log10_forget_quality": partial(_field, quality, "log10_p_value"),
        }
    metrics["in_scope_forget_quality_variance"] = partial(_variance, qualities, "p_value")
    metrics["in_scope_ks_variance"] = partial(_variance, qualities, "statistic")
    return metrics


def _mean_of(attribute: str, scores: Scores, name: str) -> float:
    return row_mean(scores, name, attribute)


def _in_scope(compute: Callable[[Scores, str], float], scores: Scores, kind: str) -> float:
    return compute(scores, _in_scope_set(scores, kind))


def _in_scope_set(scores: Scores, kind: str) -> str:
    """Return the name of a hard set that was scored."""
    name = f"{IN_SCOPE_PREFIX}{kind}"
    if name not in scores.sets:
        raise MissingScoresError(f"no forget row has a {IN_SCOPE_KINDS[kind]} question")
    return name


def _in_scope_quality(scores: Scores, reference: Scores | None, kind: str) -> formulas.ForgetQuality:
    name = _in_scope_set(scores, kind)
    matching = _matching_reference(scores, reference, name, "evaluation.in_scope")
    return formulas.forget_quality(log_ratios(scores, name), log_ratios(matching, name))


def _field(quality: Callable[[], formulas.ForgetQuality], field: str) -> float:
    return float(getattr(quality(), field))


def _variance(qualities: Sequence[Callable[[], formulas.ForgetQuality]], field: str) -> float:
    """Return the population variance over the hard sets that have a forget quality. At least two sets must have one."""
    values, reason = [], ""
    for quality in qualities:
        try:
            values.append(_field(quality, field))
        except MissingScoresError as error:
            reason = str(error)
    if len(values) < 2:
        raise MissingScoresError(f"fewer than two hard sets have a forget quality ({reason})")
    return float(np.var(values))


def fluency_group(scores: Scores) -> LazyMetrics:
    """Return variety, repetition and length of the answers that were generated to the forget questions."""
    metrics: dict[str, Callable[[], float]] = {
        f"forget_distinct_{n}": partial(_of_generated_texts, scores, partial(fluency.distinct, n=n), n)
        for n in (1, 2, 3)
    }
    metrics["forget_repetition"] = partial(_of_generated_texts, scores, fluency.repetition, fluency.REPETITION_N)
    metrics["forget_answer_words"] = partial(_of_generated_texts, scores, fluency.mean_words, 0)
    return metrics


def _of_generated_texts(scores: Scores, compute: Callable[[Sequence[str]], float | None], required_words: int) -> float:
    texts = [row.generated for row in rows_of(scores, FORGET)]
    present = [text for text in texts if text is not None]
    if len(present) < len(texts):
        raise MissingScoresError(
            scores.notes.get("rouge", f"{len(texts) - len(present)} forget rows have no generated text")
        )
    value = compute(present)
    if value is None:
        raise MissingScoresError(f"no generated answer has {required_words} words")
    return value
