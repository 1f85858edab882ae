"""Read the evaluation logs of TOFU's official scripts as scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.errors import DataError
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores
from ofmu.evaluation.sets import FORGET, RETAIN, TruthRatio
from ofmu.io.files import read_json

TASKS = {
    "eval_log_forget.json": FORGET,
    "eval_log.json": RETAIN,
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}
"""Evaluation set of each task. A log names its tasks by file names."""

# A log stores whole prompts. The official model configurations put these wrappers around a question.
_WRAPPERS = re.compile(r"^\s*(?:\[INST\]|Question:)\s*|\s*(?:\[/INST\]|Answer:)?\s*$")


def is_official_log(content: Any) -> bool:
    """Return whether parsed JSON is a mapping with a task of an official log."""
    return isinstance(content, dict) and any(task in content for task in TASKS)


def read_official_log(path: str | Path, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Read an official log.

    Args:
        path: the log.
        truth_ratio: the definition under which metrics read the scores. A log holds losses, so it serves both
            definitions.

    Raises:
        DataError: the file is missing, or is no official log.
    """
    return parse_official_log(read_json(path), str(path), truth_ratio)


def parse_official_log(content: Any, source: str, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Convert the parsed JSON of an official log to scores.

    Args:
        content: the parsed JSON.
        source: the log's name in errors and in the scores.
        truth_ratio: the definition under which metrics read the scores.

    Raises:
        DataError: the content is no official log, or is malformed.
    """
    if not is_official_log(content):
        raise DataError(f"The file {source} is no official TOFU log: it holds none of {', '.join(TASKS)}")
    try:
        sets = {name: _read_task(content[task]) for task, name in TASKS.items() if task in content}
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise DataError(f"The official TOFU log {source} is malformed ({problem}): download it again") from error
    note = "an official TOFU log holds no token matches"
    notes = {"extraction_strength": note, "exact_memorization": note}
    return Scores(model=source, truth_ratio=truth_ratio, sets=sets, notes=notes)


def _read_task(task: Mapping[str, Any]) -> tuple[RowScores, ...]:
    return tuple(_read_row(task, key) for key in sorted(task["avg_gt_loss"], key=int))


def _read_row(task: Mapping[str, Any], key: str) -> RowScores:
    prompt, generated, ground_truth = task["generated_text"][key]
    perturbed = zip(task["average_perturb_loss"][key], task["num_token_perturb"][key], strict=True)
    return RowScores(
        question=_WRAPPERS.sub("", prompt),
        ground_truth=ground_truth,
        row_hash=None,
        answer=_loss(task["avg_gt_loss"][key], task["num_token_gt"][key]),
        paraphrased=_loss(task["avg_paraphrased_loss"][key], task["num_token_paraphrased"][key]),
        perturbed=tuple(_loss(mean, tokens) for mean, tokens in perturbed),
        generated=generated,
        rouge=float(task["rougeL_recall"][key]),
    )


def _loss(mean: float, tokens: int) -> AnswerLoss:
    if int(tokens) < 1:
        raise ValueError(f"an answer of {tokens} tokens")
    # A log stores sums in float32. Only the logged means reproduce the official numbers to more than 7 digits.
    return AnswerLoss(float(mean) * int(tokens), int(tokens))
