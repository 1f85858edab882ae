"""A search is not continued where the numbers of its trials mean something else by now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cyrillic_row import CYRILLIC_ROW
from ofmu.errors import RunError
from ofmu.evaluation.scores import Scores
from tune import AskTell


@pytest.mark.parametrize(("rouge", "is_refused"), [(0.5, False), (0.0, True)])
def test_trials_whose_rouge_read_latin_script_only_are_not_continued(tmp_path: Path, rouge: float, is_refused: bool):
    with AskTell({"search": {"num_trials": 3}}, run_dir=tmp_path / "run") as loop:
        trial = loop.ask()
        assert trial is not None
        scores = Scores(model="m", truth_ratio="geometric", sets={"forget": (replace(CYRILLIC_ROW, rouge=rouge),)})
        trial.directory.mkdir(parents=True, exist_ok=True)
        scores.save(trial.directory / "scores.json")
        loop.tell(trial, {"ks_statistic": 0.5, "model_utility": 0.8})
    if is_refused:
        with pytest.raises(RunError, match=r"run holds trials of an earlier version, whose ROUGE .*: start a new"):
            AskTell.resume(tmp_path / "run")
    else:
        AskTell.resume(tmp_path / "run").close()


def test_other_files_of_this_name_are_the_users_own(tmp_path: Path):
    with AskTell({"search": {"num_trials": 3}}, run_dir=tmp_path / "run") as loop:
        trial = loop.ask()
        assert trial is not None
        trial.directory.mkdir(parents=True, exist_ok=True)
        (trial.directory / "scores.json").write_text("[1, 2]")
    AskTell.resume(tmp_path / "run").close()
