"""TOFU's official evaluation logs, read as scores of a model or of a reference."""

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

# A log stores the whole prompt: these are the wrappers that the official model configurations put around a question.
_WRAPPERS = re.compile(r"^\s*(?:\[INST\]|Question:)\s*|\s*(?:\[/INST\]|Answer:)?\s*$")


def is_official_log(content: Any) -> bool:
    """Return whether parsed JSON looks like an official log: tasks by their file names."""
    return isinstance(content, dict) and any(task in content for task in TASKS)


def read_official_log(path: str | Path, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Read a log; it holds losses, so either truth-ratio definition can be taken from it.

    Raises:
        DataError: the file is missing, or is no official log.
    """
    return parse_official_log(read_json(path), str(path), truth_ratio)


def parse_official_log(content: Any, source: str, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Like :func:`read_official_log` for parsed JSON; ``source`` names it in errors."""
    if not is_official_log(content):
        raise DataError(f"The file {source} is no official TOFU log: it holds none of {', '.join(TASKS)}")
    try:
        sets = {name: _read_task(content[task]) for task, name in TASKS.items() if task in content}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise DataError(f"The official TOFU log {source} is malformed ({problem}): download it again") from error
    absent = "an official TOFU log holds no token matches"
    notes = {"extraction_strength": absent, "exact_memorization": absent}
    return Scores(model=source, truth_ratio=truth_ratio, sets=sets, notes=notes)


def _read_task(task: Mapping[str, Any]) -> tuple[RowScores, ...]:
    return tuple(_read_row(task, key) for key in sorted(task["avg_gt_loss"], key=int))


def _read_row(task: Mapping[str, Any], key: str) -> RowScores:
    prompt, generated, ground_truth = task["generated_text"][key]
    wrong = zip(task["average_perturb_loss"][key], task["num_token_perturb"][key], strict=True)
    return RowScores(
        question=_WRAPPERS.sub("", prompt),
        ground_truth=ground_truth,
        row_hash=None,
        answer=_loss(task["avg_gt_loss"][key], task["num_token_gt"][key]),
        paraphrased=_loss(task["avg_paraphrased_loss"][key], task["num_token_paraphrased"][key]),
        perturbed=tuple(_loss(mean, tokens) for mean, tokens in wrong),
        generated=generated,
        rouge=float(task["rougeL_recall"][key]),
    )


def _loss(mean: float, tokens: int) -> AnswerLoss:
    # The logged sums are float32: only the logged means reproduce the official numbers to more than 7 digits.
    return AnswerLoss(float(mean) * int(tokens), int(tokens))
