"""Read scores from a file of any format: this package's, TOFU's official log, or a log of open-unlearning."""

from __future__ import annotations

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
from ofmu.evaluation.sets import TruthRatio
from ofmu.io.files import read_json


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
    return Scores.from_json(content, source)
