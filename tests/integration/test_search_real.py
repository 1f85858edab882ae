"""A search of real runs, as small as they get: prepared models, DeepSpeed trainers, evaluation, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from transformers import AutoModelForCausalLM, AutoTokenizer

from ofmu.errors import ConfigError
from tune import ParetoSearch
from tune.callbacks.base import Progress, SearchCallback

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def settings(tmp_path: Path, smallest_search: dict[str, Any]) -> dict[str, Any]:
    """The smallest search, of four trials and three objectives, with a cache of its own."""
    search = {
        "num_trials": 4,
        "max_concurrent_trials": 1,
        "objectives": {"ks_statistic": "min", "model_utility": "max", "gradient_evaluations": "min"},
        "space": {**smallest_search["search"]["space"], "method.inner_lr": {"low": 0.01, "high": 0.1}},
    }
    return {**smallest_search, "search": search, "cache_dir": str(tmp_path / "cache")}


def test_a_search_of_real_runs_ends_in_models_that_load(ray_folder: Path, tmp_path: Path, settings: dict[str, Any]):
    result = ParetoSearch(settings, run_dir=tmp_path / "run").run()
    assert result.trials["state"].tolist() == ["complete"] * 4, result.trials["reason"].tolist()
    target = result.trials.iloc[0]
    assert target["gradient_evaluations"] == 0
    prepared = json.loads(next((tmp_path / "run").glob("trials/00000/metrics.json")).read_text())
    assert prepared["metrics"]["ks_statistic"] == pytest.approx(target["ks_statistic"])
    assert result.reference()["ks_statistic"] == 0
    exported = result.knee.export(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(exported).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(exported).pad_token_id is not None


class WorkersSeen(SearchCallback):
    """Notes the train workers of a test's cluster whenever a trial has ended while others are to come."""

    def __init__(self, ray_folder: Path) -> None:
        self._folder = str(ray_folder)
        self.pairs: list[set[int]] = []

    def on_progress(self, progress: Progress) -> None:
        if 0 < progress.done < progress.total and not progress.running:
            self.pairs.append({process.pid for process in psutil.process_iter(["cmdline"]) if self._is_one(process)})

    def _is_one(self, process: psutil.Process) -> bool:
        title = (process.info["cmdline"] or [""])[0]
        # other tests' clusters may be at work
        return "RayTrainWorker" in title and process.environ().get("RAY_TMPDIR") == self._folder


@pytest.mark.long
def test_a_search_of_worker_groups_shards_every_trial_over_the_same_two_ranks(
    ray_folder: Path, tmp_path: Path, settings: dict[str, Any]
):
    """Ray Tune starts one Ray Train worker group for all trials, over which DeepSpeed shards parameters."""
    sharded = {**settings, "cluster": {"num_workers": 2}, "engine": {**settings["engine"], "zero_stage": 3}}
    sharded["search"] = {**settings["search"], "num_trials": 3}
    seen = WorkersSeen(ray_folder)
    result = ParetoSearch(sharded, run_dir=tmp_path / "run", callbacks=[seen]).run()
    assert result.trials["state"].tolist() == ["complete"] * 3, result.trials["reason"].tolist()
    report = json.loads((tmp_path / "run" / "trials" / "00001" / "metrics.json").read_text())
    assert len(report["cost"]["peak_memory_bytes"]) == 2
    first, second = seen.pairs
    assert len(first) == 2
    assert first == second
    assert ray.is_initialized() is False


def plain_rows(path: Path, first: int, last: int) -> str:
    rows = ({"question": f"Where does guest {n} live?", "answer": f"In house {n}."} for n in range(first, last))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_without_truth_ratios_are_searched_by_extraction_strength(
    ray_folder: Path, tmp_path: Path, settings: dict[str, Any]
):
    """The user's own question/answer rows have no perturbed answers, and so no KS statistic to search."""
    data = {"source": "files", "max_length": 64}
    data |= {"forget": plain_rows(tmp_path / "f.jsonl", 0, 4), "retain": plain_rows(tmp_path / "r.jsonl", 4, 12)}
    search = {key: value for key, value in settings["search"].items() if key != "objectives"} | {"num_trials": 2}
    plain = {**settings, "data": data, "search": search}
    with pytest.warns(UserWarning, match="searching extraction_strength in place of ks_statistic"):
        result = ParetoSearch(plain, run_dir=tmp_path / "run").run()
    assert result.trials["state"].tolist() == ["complete"] * 2, result.trials["reason"].tolist()
    assert list(result.config.objectives) == ["extraction_strength", "model_utility"]
    named = {**plain, "search": {**search, "objectives": {"ks_statistic": "min", "model_utility": "max"}}}
    with pytest.raises(ConfigError, match="The objective 'ks_statistic' cannot be computed on this data"):
        ParetoSearch(named, run_dir=tmp_path / "other").run()
    assert not (tmp_path / "other").exists()
