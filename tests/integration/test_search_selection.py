"""A search of real runs that selects the rounds for which its trials stand, in Ray Tune actors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ofmu import unlearn
from ofmu.preparer import prepare
from ofmu.round_decision import StopAfterRound
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from tune import ParetoSearch, SearchResult
from tune.checkpoint_selection.archive import RoundArchive, Scored

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SELECTION = {"enabled": True, "rounds": [0.25, 0.5], "rows": 4, "stop_margin": 0.5}
SEARCH = {
    "num_trials": 5,
    "baselines": ["target"],
    # The utility of this tiny model is 0, since its answers share no word with the right ones.
    "objectives": {"forget_probability": "min", "retain_probability": "max"},
    "sampler": "random",
    "max_concurrent_trials": 1,
    "keep_models": "all",
    "confirm_seeds": 1,
    "confirm_points": 1,
    "checkpoint_selection": SELECTION,
    "space": {"method.inner_lr": {"low": 1e-2, "high": 0.3, "log": True}, "method.outer_steps": 4},
}


@pytest.fixture(scope="module")
def found(
    ray_folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_mapping: dict[str, Any]
) -> Iterator[SearchResult]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    settings = {**tiny_mapping, "method": {**tiny_mapping["method"], "inner_steps": 1}, "search": SEARCH}
    yield ParetoSearch(settings, run_dir=tmp_path_factory.mktemp("selection") / "run").run()
    ray.shutdown()


def lines(result: SearchResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.run_dir / "rounds.jsonl").read_text().splitlines()]


def test_every_sampled_trial_stands_for_the_round_that_the_archive_selects(found):
    archive, selected = RoundArchive(found.config.objectives, 0.5), {}
    for line in lines(found):
        if "candidates" in line:
            candidates = {int(round): Scored(**each) for round, each in line["candidates"].items()}
            selected[line["trial"]] = archive.select(line["trial"], candidates), candidates
        else:
            archive.report(line["trial"], line["round"], line["total"], Scored(line["values"], line["violation"]))
    sampled = found.trials[(found.trials["role"] == "sampled") & (found.trials["state"] == "complete")]
    assert set(selected) == set(sampled["trial"])
    for _, row in sampled.iterrows():
        round, candidates = selected[row["trial"]]
        assert row["selected_round"] == round
        assert {name: row[name] for name in found.config.objectives} == candidates[round].values
    assert found.trials[found.trials["role"] != "sampled"]["selected_round"].isna().all()
    assert any(round < 4 for round, _ in selected.values()), "no trial stands for an earlier round"


def test_a_trials_model_is_that_of_a_run_that_ends_at_the_round(found, tmp_path):
    earlier = found.trials[(found.trials["selected_round"] < 4) & (found.trials["state"] == "complete")].iloc[0]
    files = RunFiles(found.run_dir / "trials" / f"{earlier['trial']:05d}")
    config = UnlearnConfig.model_validate(files.read_config())
    alone = unlearn(
        config, tmp_path, prepared=prepare(config), round_callback=StopAfterRound(int(earlier["selected_round"]))
    )
    stored = files.read_metrics() or {}
    for name in found.config.objectives:
        assert stored[name] == alone.metrics[name]
    assert stored["gradient_evaluations"] > (alone.metrics["gradient_evaluations"] or 0)
    assert files.scores.read_bytes() == (tmp_path / "scores.json").read_bytes()


def test_confirming_runs_end_at_the_round(found):
    confirmation = found.confirmation
    assert confirmation is not None
    rounds = found.trials.set_index("trial")["selected_round"]
    for point in confirmation.points:
        (run,) = point.runs
        stored = RunFiles(found.run_dir / run.directory).read_metrics() or {}
        if rounds[point.trial] == rounds[point.trial]:
            assert stored["outer_steps_taken"] == rounds[point.trial]


def test_a_trial_that_lost_its_result_selects_the_same_round_again(found, tmp_path):
    """The files are those of a search that was killed after the last trial had asked the archive."""
    copy = tmp_path / "run"
    shutil.copytree(found.run_dir, copy)
    last = int(found.trials["trial"].max())
    study = (copy / "study.log").read_text().splitlines(keepends=True)
    end = next(place for place, line in enumerate(study) if _ends(json.loads(line), last))
    (copy / "study.log").write_text("".join(study[:end]))
    shutil.rmtree(copy / "trials" / f"{last:05d}")
    shutil.rmtree(copy / "confirmation")
    (copy / "confirmation.json").unlink()
    again = ParetoSearch.resume(copy)
    names = ["trial", "state", "selected_round", *found.config.objectives]
    assert again.trials[names].equals(found.trials[names])
    assert lines(again) == lines(found)


def _ends(line: dict[str, Any], trial: int) -> bool:
    """Return whether a line of the study's journal is the first of those that store a trial's end."""
    return line.get("trial_id") == trial and line.get("user_attr", {}).keys() >= {"metrics"}
