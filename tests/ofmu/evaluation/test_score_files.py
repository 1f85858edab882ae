"""Scores of an earlier version are not compared in silence with scores of this one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from cyrillic_row import CYRILLIC_ROW as ROW
from ofmu.evaluation.score_files import read_scores
from ofmu.evaluation.scores import RowScores, Scores


def written(path: Path, *rows: RowScores) -> Path:
    Scores(model="m", truth_ratio="geometric", sets={"forget": rows}).save(path)
    return path


def test_a_rouge_that_read_latin_script_only_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "scores.json", ROW, replace(ROW, rouge=0.0), replace(ROW, rouge=None))
    with pytest.warns(
        UserWarning, match=r"ROUGE of 1 answer in .*scores\.json is of an earlier version.*again"
    ) as said:
        assert len(read_scores(file).sets["forget"]) == 3
    assert len(said) == 1


def test_other_scores_are_read_without_a_word(tmp_path: Path) -> None:
    edited = replace(ROW, ground_truth="Émile Zola", generated="Zola", rouge=0.123)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_scores(written(tmp_path / "scores.json", ROW, edited, replace(ROW, rouge=0.0, generated=None)))
