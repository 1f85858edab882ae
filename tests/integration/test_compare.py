"""Comparisons on a local Ray: tiny runs that are killed and resumed, and budgets with metrics in closed form."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml

from ofmu.cli.main import main
from ofmu.errors import ConfigError, NonFiniteLossError
from ofmu.evaluation.scores import Scores
from tune import Comparison, ComparisonResult

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def tiny(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_mapping: dict[str, Any]) -> Path:
    """A config file of tiny runs."""
    folder = tmp_path_factory.mktemp("compare")
    mapping = {
        **tiny_mapping,
        "method": {"batch_size": 4},
        "cache_dir": str(folder / "cache"),
        "search": {"sampler": "random", "max_concurrent_trials": 1},
        "compare": {"space": {"method.lr": {"low": 1e-3, "high": 3e-3}, "method.steps": {"low": 2, "high": 6}}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


@pytest.fixture(scope="module")
def resumed(tiny: Path) -> tuple[Path, dict[str, int]]:
    """A comparison that was killed during its first runs on other seeds, and resumed with draws of the retain rows.

    Return its directory, and the modification times of the metrics that existed before the resume.
    """
    run_dir = tiny.parent / "run"
    options = ["--methods", "graddiff,npo", "--trials", "3", "--seeds", "2", "--points", "2"]
    command = [sys.executable, "-m", "ofmu", "compare", "--benchmark", str(tiny), *options, "--run-dir", str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(run_dir.glob("runs/*/*/metrics.json")):
        assert process.poll() is None, "the comparison ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {str(path): path.stat().st_mtime_ns for path in run_dir.rglob("metrics.json")}
    assert not (run_dir / "compare.json").exists()
    assert main(["compare", "--resume", str(run_dir), "compare.retain_draws=2"]) == 0
    return run_dir, done


def test_a_killed_comparison_repeats_nothing(resumed):
    run_dir, done = resumed
    assert len(done) >= 4
    assert {path: Path(path).stat().st_mtime_ns for path in done} == done
    for method in ("graddiff", "npo"):
        states = pd.read_csv(run_dir / "searches" / method / "trials.csv")["state"].tolist()
        assert states == ["complete"] * 3


def test_every_number_leads_to_its_run(resumed):
    run_dir, _ = resumed
    summary = ComparisonResult.load(run_dir).summary
    assert summary.seeds == (1, 2)
    assert {method.name for method in summary.methods} == {"graddiff", "npo"}
    for method in summary.methods:
        trials = pd.read_csv(run_dir / method.search / "trials.csv")
        assert trials.loc[0, "ks_statistic"] == pytest.approx(summary.target["ks_statistic"])
        assert method.cost.search_gradient_evaluations == trials["gradient_evaluations"].sum()
        assert 1 <= len(method.points) <= 2
        for point in method.points:
            for run in point.runs:
                stored = json.loads((run_dir / run.directory / "metrics.json").read_text())
                assert {name: stored["metrics"][name] for name in run.metrics} == run.metrics
                settings = stored["config"]["method"]
                assert (settings["name"], settings["seed"]) == (method.name, run.seed)
                assert {key: settings[key.removeprefix("method.")] for key in point.settings} == point.settings
    for name in ("compare.csv", "compare.md", "compare.png", "environment.json"):
        assert (run_dir / name).stat().st_size > 0
    assert not list(run_dir.glob("runs/*/*/model"))


def test_runs_differ_by_seed_and_start_from_one_target(resumed):
    run_dir, _ = resumed
    reports = [json.loads(path.read_text()) for path in run_dir.rglob("metrics.json")]
    assert len({json.dumps(report["prepared"]) for report in reports}) == 1
    assert len({report["data_hash"] for report in reports}) == 1
    for method in ComparisonResult.load(run_dir).summary.methods:
        for point in method.points:
            scores = [(run_dir / run.directory / "scores.json").read_text() for run in point.runs]
            assert len(set(scores)) == len(scores)


def test_points_run_again_on_draws_of_the_retain_rows_which_all_methods_share(resumed):
    run_dir, _ = resumed
    summary = ComparisonResult.load(run_dir).summary
    assert (summary.retain_draws, summary.retain_share) == (2, 0.5)
    hashes: dict[int, set[str]] = {1: set(), 2: set()}
    for method in summary.methods:
        assert [point.trial for point in method.retain_points] == [point.trial for point in method.points]
        for whole, point in zip(method.points, method.retain_points, strict=True):
            assert [(run.seed, run.retain_draw) for run in point.runs] == [(1, 1), (1, 2)]
            scores = [Scores.load(run_dir / whole.runs[0].directory / "scores.json")]
            for run in point.runs:
                stored = json.loads((run_dir / run.directory / "metrics.json").read_text())
                drawn, settings = stored["retain_rows"], stored["config"]["method"]
                assert (settings["retain_share"], settings["retain_draw"], settings["seed"]) == (
                    0.5,
                    run.retain_draw,
                    1,
                )
                assert len(set(drawn["indices"])) == len(drawn["indices"]) == (drawn["total"] + 1) // 2
                assert drawn["hash"] == run.retain_rows_hash
                hashes[run.retain_draw].add(run.retain_rows_hash)
                scores.append(Scores.load(run_dir / run.directory / "scores.json"))
            retained = [each.sets["retain"] for each in scores]
            assert len({tuple(row.row_hash for row in rows) for rows in retained}) == 1, "the evaluation keeps all rows"
            assert len({tuple(row.answer.nll for row in rows) for rows in retained}) == 3, "other rows, another model"
        assert len(method.retain_hypervolumes) == 2
        assert [spread.quantity for spread in method.retain_spreads] == [*summary.objectives, "hypervolume"]
    assert [len(found) for found in hashes.values()] == [1, 1]
    assert hashes[1] != hashes[2]
    for name in ("compare.md", "report.html"):
        assert "Which retain rows were used" in (run_dir / name).read_text()


def test_a_finished_comparison_is_shown_again(resumed, capsys):
    run_dir, _ = resumed
    (run_dir / "compare.png").unlink()
    assert main(["compare", "--resume", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "graddiff" in shown
    assert "compare.json" in shown
    assert (run_dir / "compare.png").is_file()
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "ofmu,npoo"], "did you mean 'npo'"),
        (["--methods", "ofmu,npo", "--benchmark", "quickstrat"], "did you mean 'quickstart'"),
        (["--methods", "ofmu,npo", "--benchmark", "quickstart", "--seeds", "0"], "compare.seeds"),
        (["--resume", "nowhere"], "no run directory nowhere"),
        (["--resume", "nowhere", "--trials", "3"], "leave the other options out"),
        (["--methods", "ofmu"], "at least two methods"),
    ],
)
def test_wrong_arguments_get_one_sentence_before_anything_runs(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cluster(two_cpus: None) -> Iterator[None]:
    # The workers cannot import this module by name.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def execute(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, float]:
    """Return metrics in closed form: npo is better, graddiff is cheaper, and one run of graddiff fails."""
    if "seed2" in trial_dir.name and config.method.name == "graddiff":
        raise NonFiniteLossError("The loss became NaN at step 2: lower method.lr")
    share, seed = min(config.method.steps, 80) / 100, config.method.seed or 0
    gain = 0.1 if config.method.name == "npo" and share else 0.0
    cost = {"npo": 4, "graddiff": 2, "gradascent": 1}[config.method.name]
    return {
        "ks_statistic": 0.9 - share - gain,
        "model_utility": 0.8 - share**2 + 0.01 * seed,
        "gradient_evaluations": cost * 100 * share,
        "seconds": 1.0,
    }


@pytest.mark.long
def test_the_same_gradient_evaluations_give_a_cheaper_method_more_trials(cluster, tmp_path):
    settings = {"search": {"sampler": "random"}, "compare": {"spaces": {"graddiff": {"method.steps": {"high": 20}}}}}
    given = {"num_trials": 5, "seeds": 2, "points": 2, "budget": "evaluations", "run_dir": tmp_path / "run"}
    result = Comparison(settings, ["npo", "graddiff"], executor=execute, **given).run()
    npo, graddiff = result.summary.method("npo"), result.summary.method("graddiff")
    assert (npo.trials, graddiff.failed) == (5, 0)
    assert graddiff.trials > 5
    spent = npo.cost.search_gradient_evaluations
    # Trials that run when the budget is spent may end: one beside the last one, each of at most 160 evaluations.
    assert spent <= graddiff.cost.search_gradient_evaluations <= spent + 2 * 160
    failed = [run for point in graddiff.points for run in point.runs if run.metrics is None]
    assert {run.seed for run in failed} == {2}
    assert "NaN at step 2" in failed[0].reason
    assert graddiff.hypervolumes[1] == 0
    assert (tmp_path / "run" / failed[0].directory / "failed.json").is_file()

    # A resume of a finished comparison may add seeds. Its searches and runs are kept.
    again = Comparison.resume(tmp_path / "run", ["compare.seeds=3"], executor=execute).summary
    assert again.seeds == (1, 2, 3)
    for name, before in (("npo", npo), ("graddiff", graddiff)):
        assert again.method(name).trials == before.trials
        for point, earlier in zip(again.method(name).points, before.points, strict=True):
            assert [run.seed for run in point.runs] == [1, 2, 3]
            assert point.runs[:2] == earlier.runs

    # A resume may add methods with their own budgets and spaces. Finished methods are kept.
    added = ["compare.methods=npo,graddiff,gradascent", "compare.spaces.gradascent={method.steps: {high: 30}}"]
    wider = Comparison.resume(tmp_path / "run", added, executor=execute).summary
    assert wider.seeds == (1, 2, 3)
    for name in ("npo", "graddiff"):
        assert wider.method(name).points == again.method(name).points
    third = wider.method("gradascent")
    assert third.trials > 5
    assert (
        max(point.settings.get("method.steps", 0) for point in third.points) <= 60
    )  # the published settings may exceed 30
    assert Comparison.resume(tmp_path / "run", executor=execute).summary == wider
    with pytest.raises(ConfigError, match="cannot leave out the method 'npo'"):
        Comparison.resume(tmp_path / "run", ["compare.methods=graddiff,gradascent"], executor=execute)
    with pytest.raises(ConfigError, match=r"what the method 'graddiff' searches, as its search has begun"):
        Comparison.resume(tmp_path / "run", ["compare.spaces.graddiff={method.steps: {high: 30}}"], executor=execute)
