"""Write scores as open-unlearning does: ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json``, or the same of MUSE.

Definitions are open-unlearning's. They differ from ours in these points: extraction strength is at least 1/n for an
answer of n tokens, the truth ratio is geometric, 1e-10 is added to denominators, and without a reference, privacy
leakage compares with an AUC of 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ofmu.errors import DataError
from ofmu.evaluation.metrics import formulas
from ofmu.evaluation.metrics.row_values import MissingScoresError, NonFiniteError, log_ratios, right_losses
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.open_unlearning import ATTACKS, AUC_WITHOUT_REFERENCE, METRICS, MUSE_TASKS, TOFU_PREFIXES
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, compressed_size
from ofmu.evaluation.scoring.rouge import rouge_1_recall, rouge_l_f1, rouge_l_recall
from ofmu.evaluation.sets import FORGET, FORGET_KNOWLEDGE, GENERAL_SETS, HOLDOUT, MEMBERS, RETAIN_KNOWLEDGE

Entry = dict[str, Any]
"""What a log holds of one metric: ``agg_value``, and ``value_by_index`` where the metric has values of single rows."""


LOG_NAMES = ("TOFU_EVAL.json", "TOFU_SUMMARY.json", "MUSE_EVAL.json", "MUSE_SUMMARY.json")
"""Every file that an export may write."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """One log and its summary."""

    benchmark: str
    """``TOFU`` or ``MUSE``."""
    metrics: Mapping[str, Entry]
    left_out: Mapping[str, str]
    """Reason of each metric that open-unlearning would have and that these scores do not give."""

    @property
    def files(self) -> dict[str, Any]:
        """The JSON content of each file, by its name."""
        ordered = dict(sorted(self.metrics.items()))
        totals = {name: entry["agg_value"] for name, entry in ordered.items()}
        return {f"{self.benchmark}_EVAL.json": ordered, f"{self.benchmark}_SUMMARY.json": totals}


def to_open_unlearning(scores: Scores, reference: Scores | None) -> Log:
    """Convert scores to a log.

    Args:
        scores: the scores of a model.
        reference: the scores of the retrained model, or None.

    Raises:
        DataError: the scores have no forget rows.
        ReferenceMismatchError: the reference covers other rows.
    """
    if not scores.sets.get(FORGET):
        raise DataError(f"The scores of '{scores.model}' have no forget rows, so open-unlearning has no log of them")
    scores = replace(scores, truth_ratio="geometric")
    reference = None if reference is None else replace(reference, truth_ratio="geometric")
    measured = metrics_of(scores, reference)
    is_muse = bool({FORGET_KNOWLEDGE, RETAIN_KNOWLEDGE} & scores.sets.keys())
    entries = dict(_muse_entries(scores) if is_muse else _tofu_entries(scores))
    entries |= dict(_attack_entries(scores, reference, measured.values))
    entries |= dict(_memorization_entries(scores))
    totals = {
        "forget_quality": measured.values.get("forget_quality"),
        "model_utility": _model_utility(entries),
        "privleak": _privacy_leakage(measured.values, reference),
    }
    entries |= {name: {"agg_value": total} for name, total in totals.items() if total is not None}
    expected = _MUSE_METRICS if is_muse else METRICS.keys() - MUSE_TASKS.values()
    reasons = {"model_utility": "it needs all of its nine parts"} | {
        name: measured.reasons[ours] for name, ours in METRICS.items() if ours in measured.reasons
    }
    left_out = {name: reasons.get(name, "the scores do not give it") for name in sorted(expected - entries.keys())}
    return Log(benchmark="MUSE" if is_muse else "TOFU", metrics=entries, left_out=left_out)


def _model_utility(entries: Mapping[str, Entry]) -> float | None:
    """Return the harmonic mean of the nine parts; None if a part is missing."""
    parts = [entries.get(name) for name in _UTILITY_PARTS]
    known = [float(part["agg_value"]) for part in parts if part is not None]
    return formulas.harmonic_mean(known) if len(known) == len(parts) else None


def _privacy_leakage(values: Mapping[str, float | None], reference: Scores | None) -> float | None:
    auc, expected = values.get("membership_min_k"), AUC_WITHOUT_REFERENCE
    if reference is not None and values.get("privacy_leakage") is not None:
        expected = metrics_of(reference).values["membership_min_k"] or 0.0
    elif reference is not None:
        return None
    return None if auc is None else 100 * ((1 - auc) - (1 - expected)) / (1 - expected + _TINY)


_TINY = 1e-10
"""What open-unlearning adds to denominators."""
_UTILITY_PARTS = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
)
_MUSE_METRICS = {*MUSE_TASKS.values(), *ATTACKS, "privleak", "extraction_strength", "exact_memorization"}


def _tofu_entries(scores: Scores) -> Iterator[tuple[str, Entry]]:
    for name, prefix in TOFU_PREFIXES.items():
        rows = scores.sets.get(name, ())
        if not rows:
            continue
        yield from _text_entry(f"{prefix}_Q_A_ROUGE", rows, "rougeL_recall")
        yield from _loss_entry(f"{prefix}_Q_A_Prob", [row.answer for row in rows])
        yield from _loss_entry(f"{prefix}_Q_A_PARA_Prob", [row.paraphrased for row in rows])
        yield from _wrong_entry(f"{prefix}_Q_A_PERT_Prob", rows)
        if name in GENERAL_SETS:
            yield from _share_entry(f"{prefix}_Q_A_Prob_normalised", rows)
        yield from _ratio_entry("forget_truth_ratio" if name == FORGET else f"{prefix}_Truth_Ratio", scores, name)


def _muse_entries(scores: Scores) -> Iterator[tuple[str, Entry]]:
    for name, task in MUSE_TASKS.items():
        yield from _text_entry(task, scores.sets.get(name, ()), "rougeL_f1")


def _text_entry(metric: str, rows: Sequence[RowScores], kind: str) -> Iterator[tuple[str, Entry]]:
    """Yield the entry of the generated texts if there are any. ``kind`` is the number whose mean is the total."""
    if not rows or any(row.generated is None for row in rows):
        return
    values = []
    for row in rows:
        texts = row.ground_truth, row.generated or ""
        values.append(
            {
                "rouge1_recall": rouge_1_recall(*texts),
                "rougeL_f1": rouge_l_f1(*texts),
                "rougeL_recall": rouge_l_recall(*texts),
                "input": row.question,
                "ground_truth": row.ground_truth,
                "generation": row.generated,
            }
        )
    yield metric, _entry(values, [float(value[kind]) for value in values])  # type: ignore[arg-type]


def _loss_entry(metric: str, losses: Sequence[AnswerLoss | None]) -> Iterator[tuple[str, Entry]]:
    known = [loss.mean for loss in losses if loss is not None]
    if losses and len(known) == len(losses) and all(map(math.isfinite, known)):
        probabilities = [math.exp(-loss) for loss in known]
        values = [{"prob": prob, "avg_loss": loss} for prob, loss in zip(probabilities, known, strict=True)]
        yield metric, _entry(values, probabilities)


def _wrong_entry(metric: str, rows: Sequence[RowScores]) -> Iterator[tuple[str, Entry]]:
    losses = [[loss.mean for loss in row.perturbed] for row in rows]
    if not all(losses) or not all(math.isfinite(loss) for each in losses for loss in each):
        return
    probabilities = [[math.exp(-loss) for loss in each] for each in losses]
    values = [{"prob": prob, "avg_loss": loss} for prob, loss in zip(probabilities, losses, strict=True)]
    yield metric, _entry(values, [sum(each) / len(each) for each in probabilities])


def _share_entry(metric: str, rows: Sequence[RowScores]) -> Iterator[tuple[str, Entry]]:
    if any(row.answer is None or not row.perturbed for row in rows):
        return
    shares = []
    for row in rows:
        right = math.exp(-row.answer.mean) if row.answer is not None else math.nan
        wrong = math.fsum(math.exp(-loss.mean) for loss in row.perturbed)
        shares.append(right / (right + wrong + _TINY))
    if all(map(math.isfinite, shares)):
        yield metric, _entry([{"prob": share} for share in shares], shares)


def _ratio_entry(metric: str, scores: Scores, name: str) -> Iterator[tuple[str, Entry]]:
    try:
        right = np.exp(-right_losses(scores, name))
        # A ratio above e^700 is no float.
        ratios = np.exp(np.minimum(log_ratios(scores, name), 700.0)) * right / (right + _TINY)
    except (MissingScoresError, NonFiniteError):
        return
    shares = np.minimum(ratios, 1 / (ratios + _TINY)) if name == FORGET else np.maximum(0.0, 1 - ratios)
    values = [{"score": float(ratio)} for ratio in ratios]
    yield metric, {"agg_value": float(np.mean(shares)), "value_by_index": _by_index(values)}


def _memorization_entries(scores: Scores) -> Iterator[tuple[str, Entry]]:
    rows = scores.sets[FORGET]
    exact = [row.exact_memorization for row in rows]
    strengths = [_their_strength(row) for row in rows]
    for metric, values in {"exact_memorization": exact, "extraction_strength": strengths}.items():
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            yield metric, _entry([{"score": value} for value in known], known)


def _their_strength(row: RowScores) -> float | None:
    """Return open-unlearning's extraction strength. Its loop over starts ends at the last token, right or wrong."""
    if row.extraction_strength is None or row.answer is None:
        return row.extraction_strength
    tokens = row.answer.tokens - 1  # without EOS
    return max(row.extraction_strength, 1 / tokens) if tokens > 0 else row.extraction_strength


def _attack_entries(
    scores: Scores, reference: Scores | None, totals: Mapping[str, float | None]
) -> Iterator[tuple[str, Entry]]:
    sides = {"forget": MEMBERS if MEMBERS in scores.sets else FORGET, "holdout": HOLDOUT}
    for metric, ours in ATTACKS.items():
        auc = totals.get(ours)
        if auc is None:
            continue
        parts = {}
        for side, name in sides.items():
            values = [_attack_score(metric, row, other) for row, other in _pairs(scores, reference, name)]
            parts[side] = _entry([{"score": value} for value in values], values)
        yield metric, {**parts, "auc": auc, "agg_value": auc}


def _pairs(scores: Scores, reference: Scores | None, name: str) -> Iterator[tuple[RowScores, RowScores | None]]:
    rows = scores.sets[name]
    others = () if reference is None else reference.sets.get(name, ())
    for index, row in enumerate(rows):
        yield row, others[index] if index < len(others) else None


def _attack_score(metric: str, row: RowScores, other: RowScores | None) -> float:
    loss = math.nan if row.answer is None else row.answer.mean
    if metric == "mia_zlib":
        return loss / (compressed_size(row) or math.nan)
    if metric == "mia_reference":
        if other is not None and other.answer is not None:
            return loss - other.answer.mean
        return math.nan if row.loss_above_reference is None else row.loss_above_reference
    held = {"mia_min_k": row.min_k, "mia_min_k_plus_plus": row.min_k_plus, "mia_gradnorm": row.gradient_norm}
    return loss if metric == "mia_loss" else float(held[metric] or 0.0)


def _entry(values: Sequence[Mapping[str, Any]], numbers: Sequence[float]) -> Entry:
    return {"agg_value": math.fsum(numbers) / len(numbers), "value_by_index": _by_index(values)}


def _by_index(values: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {str(index): value for index, value in enumerate(values)}
