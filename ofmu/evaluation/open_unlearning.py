"""Read the evaluation logs of open-unlearning as scores, and its summaries as metrics.

A log (``TOFU_EVAL.json``, ``MUSE_EVAL.json``) maps metrics to ``{agg_value, value_by_index}``. A summary
(``TOFU_SUMMARY.json``) maps the same metrics to numbers. In a log, the score of a truth ratio is wrong/right. Source:
github.com/locuslab/open-unlearning, ``src/evals``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ofmu.errors import DataError
from ofmu.evaluation.metrics.membership import privacy_leakage
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores
from ofmu.evaluation.sets import (
    FORGET,
    FORGET_KNOWLEDGE,
    HOLDOUT,
    MEMBERS,
    RETAIN,
    RETAIN_KNOWLEDGE,
    TruthRatio,
)

TOFU_PREFIXES = {FORGET: "forget", RETAIN: "retain", "real_authors": "ra", "world_facts": "wf"}
"""The start of the metrics' names in a log of TOFU, by evaluation set."""
MUSE_TASKS = {
    FORGET: "forget_verbmem_ROUGE",
    FORGET_KNOWLEDGE: "forget_knowmem_ROUGE",
    RETAIN_KNOWLEDGE: "retain_knowmem_ROUGE",
}
"""The metric with the texts of each evaluation set in a log of MUSE."""
ATTACKS = {
    "mia_loss": "membership_loss",
    "mia_zlib": "membership_zlib",
    "mia_min_k": "membership_min_k",
    "mia_min_k_plus_plus": "membership_min_k_plus",
    "mia_reference": "membership_reference",
    "mia_gradnorm": "membership_gradient_norm",
}
"""Our name of each membership attack."""
METRICS = {
    "forget_quality": "forget_quality",
    "model_utility": "model_utility",
    "privleak": "privacy_leakage",
    "extraction_strength": "extraction_strength",
    "exact_memorization": "exact_memorization",
    "forget_truth_ratio": "forget_truth_ratio",
    "retain_Truth_Ratio": "retain_truth_ratio",
    "ra_Truth_Ratio": "real_authors_truth_ratio",
    "wf_Truth_Ratio": "world_facts_truth_ratio",
    "forget_Q_A_Prob": "forget_probability",
    "retain_Q_A_Prob": "retain_probability",
    "ra_Q_A_Prob_normalised": "real_authors_probability",
    "wf_Q_A_Prob_normalised": "world_facts_probability",
    "forget_Q_A_ROUGE": "forget_rouge",
    "retain_Q_A_ROUGE": "retain_rouge",
    "ra_Q_A_ROUGE": "real_authors_rouge",
    "wf_Q_A_ROUGE": "world_facts_rouge",
    "forget_verbmem_ROUGE": "verbatim_memorization",
    "forget_knowmem_ROUGE": "forget_knowledge_memorization",
    "retain_knowmem_ROUGE": "retain_knowledge_memorization",
    **ATTACKS,
}
"""Our name of each metric."""
AUC_WITHOUT_REFERENCE = 0.5
"""The AUC that open-unlearning takes for the retrained model in ``privleak`` if it was given no log of that model."""

_PROMPTS = (
    # A decoded chat template. The last turn of the user is the question.
    re.compile(r"(?s).*user\n+(?P<question>.*?)\s*(?:assistant|model)\s*"),
    re.compile(r"(?s)\s*\[INST\]\s*(?P<question>.*?)\s*\[/INST\]\s*"),
    # Examples may stand before the question.
    re.compile(r"(?s)(?:.*\n)?Question:\s*(?P<question>.*?)\s*\n+Answer:\s*"),
)


def is_open_unlearning_log(content: Any) -> bool:
    """Return whether parsed JSON is a log of open-unlearning, with values of single rows."""
    return isinstance(content, dict) and any(
        isinstance(content.get(name), dict) and "agg_value" in content[name] for name in METRICS
    )


def is_open_unlearning_summary(content: Any) -> bool:
    """Return whether parsed JSON is a summary of open-unlearning, with totals only."""
    return (
        isinstance(content, dict)
        and any(name in content for name in METRICS)
        and all(isinstance(value, int | float) for value in content.values())
    )


def parse_open_unlearning_log(content: Mapping[str, Any], source: str, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Convert the parsed JSON of a log to scores.

    A log holds no texts of the holdout rows and no numbers of tokens. So each loss counts as the loss of one token, and
    a holdout row is known by the size of its compressed text.

    Args:
        content: the parsed JSON.
        source: the log's name in errors and in the scores.
        truth_ratio: the definition under which metrics read the scores. A log holds losses, so it serves both
            definitions.

    Raises:
        DataError: the log is malformed, or holds no texts of the forget rows.
    """
    is_muse = any(name in content for name in MUSE_TASKS.values())
    texts = MUSE_TASKS[FORGET] if is_muse else "forget_Q_A_ROUGE"
    if texts not in content:
        raise DataError(
            f"The open-unlearning log {source} has no {texts}, which holds the texts of its rows, so it cannot be told "
            f"which rows it covers: evaluate again with {texts}"
        )
    try:
        sets = _muse_sets(content) if is_muse else _tofu_sets(content)
        sets |= _attacked_sets(content, sets[FORGET], is_muse)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise DataError(f"The open-unlearning log {source} is malformed ({problem}): make it again") from error
    missing = {"extraction_strength", "exact_memorization"} - content.keys()
    notes = {name: f"the open-unlearning log has no {name}" for name in sorted(missing)}
    return Scores(model=source, truth_ratio=truth_ratio, sets=sets, notes=notes)


def metrics_of_summary(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the totals of a summary or a log, by our names of the metrics.

    ``privleak`` is left out if it compares with no retrained model: open-unlearning then compares with an AUC of 0.5.
    """
    totals = {name: value.get("agg_value") if isinstance(value, dict) else value for name, value in content.items()}
    found = {METRICS[name]: float(value) for name, value in totals.items() if name in METRICS and value is not None}
    leakage, auc = found.get("privacy_leakage"), found.get("membership_min_k")
    if leakage is not None and auc is not None:
        without_reference = privacy_leakage(auc, AUC_WITHOUT_REFERENCE)
        if math.isclose(leakage, without_reference, rel_tol=1e-6, abs_tol=1e-6):
            del found["privacy_leakage"]
    return found


def question_of(prompt: str) -> str:
    """Return the question in a logged prompt; the whole prompt if its template is not known."""
    for pattern in _PROMPTS:
        match = pattern.fullmatch(prompt)
        if match:
            return match["question"].strip()
    return prompt.strip()


def _tofu_sets(content: Mapping[str, Any]) -> dict[str, tuple[RowScores, ...]]:
    sets = {}
    for name, prefix in TOFU_PREFIXES.items():
        texts = content.get(f"{prefix}_Q_A_ROUGE")
        if texts is not None:
            keys = _keys(texts["value_by_index"])
            sets[name] = tuple(_tofu_row(content, name, prefix, key, keys) for key in keys)
    return sets


def _tofu_row(content: Mapping[str, Any], name: str, prefix: str, key: str, keys: Sequence[str]) -> RowScores:
    def entry(metric: str) -> Mapping[str, Any]:
        return _entry(content, f"{prefix}_{metric}", key, keys)

    texts, perturbed = entry("Q_A_ROUGE"), entry("Q_A_PERT_Prob").get("avg_loss")
    losses = perturbed if isinstance(perturbed, list) else [perturbed]
    forget = name == FORGET
    return RowScores(
        question=question_of(texts["input"]),
        ground_truth=texts["ground_truth"],
        row_hash=None,
        answer=_loss(entry("Q_A_Prob").get("avg_loss")),
        paraphrased=_loss(entry("Q_A_PARA_Prob").get("avg_loss")),
        perturbed=tuple(AnswerLoss(float(loss), 1) for loss in losses if loss is not None),
        generated=texts["generation"],
        rouge=float(texts["rougeL_recall"]),
        extraction_strength=_score(content, "extraction_strength", key, keys) if forget else None,
        exact_memorization=_score(content, "exact_memorization", key, keys) if forget else None,
    )


def _muse_sets(content: Mapping[str, Any]) -> dict[str, tuple[RowScores, ...]]:
    sets = {}
    for name, task in MUSE_TASKS.items():
        if task in content:
            rows = content[task]["value_by_index"]
            keys = _keys(rows)
            sets[name] = tuple(_muse_row(content, name, rows[key], key, keys) for key in keys)
    return sets


def _muse_row(
    content: Mapping[str, Any], name: str, texts: Mapping[str, Any], key: str, keys: Sequence[str]
) -> RowScores:
    forget = name == FORGET
    return RowScores(
        question=texts["input"] if forget else question_of(texts["input"]),
        ground_truth=texts["ground_truth"],
        row_hash=None,
        answer=None,
        generated=texts["generation"],
        rouge=float(texts["rougeL_recall"]),
        rouge_f1=float(texts["rougeL_f1"]),
        extraction_strength=_score(content, "extraction_strength", key, keys) if forget else None,
        exact_memorization=_score(content, "exact_memorization", key, keys) if forget else None,
    )


def _attacked_sets(
    content: Mapping[str, Any], forget: Sequence[RowScores], is_muse: bool
) -> dict[str, tuple[RowScores, ...]]:
    """Return the two sets that membership attacks compare; empty if the log has no attack with losses."""
    if "mia_loss" not in content:
        return {}
    members = _attacked_rows(content, "forget")
    holdout = _attacked_rows(content, "holdout")
    if is_muse:
        return {MEMBERS: members, HOLDOUT: holdout}
    merged = tuple(_with_attacks(row, attacked) for row, attacked in zip(forget, members, strict=True))
    return {FORGET: merged, HOLDOUT: holdout}


def _attacked_rows(content: Mapping[str, Any], side: str) -> tuple[RowScores, ...]:
    def values(metric: str) -> Mapping[str, Any]:
        return dict(content[metric][side]["value_by_index"]) if metric in content else {}

    def score(metric: str, key: str) -> float | None:
        value = scores[metric][key]["score"] if scores[metric] else None
        return None if value is None else float(value)

    scores = {metric: values(metric) for metric in ATTACKS}
    rows = []
    for key in _keys(scores["mia_loss"]):
        loss, ratio = score("mia_loss", key), score("mia_zlib", key)
        rows.append(
            RowScores(
                question="",
                ground_truth="",
                row_hash=None,
                answer=_loss(loss),
                compressed_bytes=_compressed_bytes(loss, ratio),
                min_k=score("mia_min_k", key),
                min_k_plus=score("mia_min_k_plus_plus", key),
                gradient_norm=score("mia_gradnorm", key),
                loss_above_reference=score("mia_reference", key),
            )
        )
    return tuple(rows)


def _compressed_bytes(loss: float | None, ratio: float | None) -> int | None:
    """Return the size by which the attack divided a loss; None if the two numbers do not tell it."""
    size = loss / ratio if loss is not None and ratio else math.nan
    return (round(size) or None) if math.isfinite(size) else None


def _with_attacks(row: RowScores, attacked: RowScores) -> RowScores:
    return replace(
        row,
        answer=row.answer or attacked.answer,
        min_k=attacked.min_k,
        min_k_plus=attacked.min_k_plus,
        gradient_norm=attacked.gradient_norm,
        loss_above_reference=attacked.loss_above_reference,
    )


def _keys(values: Mapping[str, Any]) -> list[str]:
    """Return the indices of a metric's rows in the order of the data set."""
    return sorted(values, key=int)


def _entry(content: Mapping[str, Any], metric: str, key: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return what a log holds of one row under a metric; empty if the log lacks the metric.

    Raises:
        ValueError: the metric covers other rows than ``keys``.
    """
    if metric not in content:
        return {}
    values = content[metric]["value_by_index"]
    if len(values) != len(keys):
        raise ValueError(f"{metric} covers {len(values)} rows and not {len(keys)}")
    return dict(values[key] or {})


def _score(content: Mapping[str, Any], metric: str, key: str, keys: Sequence[str]) -> float | None:
    score = _entry(content, metric, key, keys).get("score")
    return None if score is None else float(score)


def _loss(mean: float | None) -> AnswerLoss | None:
    return None if mean is None else AnswerLoss(float(mean), 1)
