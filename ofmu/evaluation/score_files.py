"""Read scores from a file of any format: this package's, TOFU's official log, or a log of open-unlearning."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from ofmu.errors import DataError
from ofmu.evaluation.official_log import is_official_log, parse_official_log
from ofmu.evaluation.open_unlearning import (
    is_open_unlearning_log,
    is_open_unlearning_summary,
    parse_open_unlearning_log,
)
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.evaluation.scoring.rouge_words import loses_words
from ofmu.evaluation.sets import TruthRatio
from ofmu.io.files import read_json
from ofmu.io.text import counted


def read_scores(path: str | Path, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Read a file of scores.

    Args:
        path: the file.
        truth_ratio: the definition under which metrics read a log. Scores of this package name their own.

    Raises:
        DataError: the file is missing, or holds no scores.
    """
    return parse_scores(read_json(path), str(path), truth_ratio)


def parse_scores(content: Any, source: str, truth_ratio: TruthRatio = "geometric") -> Scores:
    """Convert parsed JSON to scores.

    Args:
        content: the parsed JSON.
        source: the file's name in errors.
        truth_ratio: the definition under which metrics read a log.

    Raises:
        DataError: the content holds no scores.
    """
    if is_official_log(content):
        return parse_official_log(content, source, truth_ratio)
    if is_open_unlearning_log(content):
        return parse_open_unlearning_log(content, source, truth_ratio)
    if is_open_unlearning_summary(content):
        raise DataError(
            f"The summary {source} holds totals only, and a comparison needs the values of every row: give the "
            "_EVAL.json that open-unlearning writes beside it"
        )
    scores = Scores.from_json(content, source)
    _warn_of_earlier_rouge(scores, source)
    return scores


def count_earlier_rouge(scores: Scores) -> int:
    """Return the number of answers whose ROUGE was computed before ROUGE had words for their script."""
    return sum(
        not math.isclose(row.rouge, rouge_l_recall(row.ground_truth, row.generated))
        for rows in scores.sets.values()
        for row in rows
        if row.rouge is not None and row.generated is not None and loses_words(row.ground_truth)
    )


def _warn_of_earlier_rouge(scores: Scores, source: str) -> None:
    differing = count_earlier_rouge(scores)
    if differing:
        warnings.warn(
            f"The ROUGE of {counted(differing, 'answer')} in {source} is of an earlier version, which read Latin "
            "script only, and cannot be compared with ROUGE of today: score the model again",
            stacklevel=3,
        )
