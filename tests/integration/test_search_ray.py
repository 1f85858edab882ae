"""Searches in real Ray Tune actors: failures of every kind, a killed driver, a second driver, clusters that fail."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from ofmu.errors import ClusterError, NonFiniteLossError, RunError, StorageError
from tune import AskTell, ParetoSearch, SearchResult
from tune.callbacks.base import Progress, SearchCallback
from tune.results.report import format_front
from tune.study.finished_trial import FinishedTrial
from tune.study.storage import read_study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DRIVER = Path(__file__).resolve().parents[1] / "helpers" / "search_driver.py"
UNREACHABLE = "127.0.0.1:9"


@pytest.fixture(scope="module")
def cluster(two_cpus: None) -> Iterator[None]:
    """One local cluster for the tests that do not need their own."""
    # The workers cannot import this module by its name.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def execute(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, Any]:
    """Two objectives in closed form, and one trial of each kind that goes wrong."""
    number = int(trial_dir.name)
    with (trial_dir.parent.parent / "log.txt").open("a") as stream:
        stream.write(f"{number}\n")
    (trial_dir / "model").mkdir(exist_ok=True)
    (trial_dir / "model" / "weights").write_text(str(number))
    (trial_dir / "config.yaml").write_text(f"seed: {config.seed}\n")
    if number == 3:
        raise NonFiniteLossError("The loss became NaN at outer step 2: lower method.inner_lr")
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        raise RuntimeError("a bug")
    if number == 6:
        return {"ks_statistic": math.nan, "model_utility": 1.0}
    if number == 7 and not (trial_dir / "tried").exists():
        (trial_dir / "tried").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.method.outer_steps == 0:
        return {"ks_statistic": 0.9, "model_utility": 0.6}
    rate = config.method.inner_lr_scale / 40
    return {"ks_statistic": 0.9 - 5 * rate, "model_utility": 0.6 - 3 * rate * rate}


def execute_on_a_full_disk(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, Any]:
    full = trial_dir.parent.parent / "full"
    if int(trial_dir.name) == 3 and not full.exists():
        full.touch()
        raise StorageError(f"Cannot write {trial_dir} (No space left on device): free or mount the disk")
    with (trial_dir.parent.parent / "log.txt").open("a") as stream:
        stream.write(f"{int(trial_dir.name)}\n")
    return {"ks_statistic": 1 - config.method.inner_lr_scale / 40, "model_utility": config.method.inner_lr_scale / 40}


def execute_closed_form(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, Any]:
    rate, steps = config.method.inner_lr_scale / 40, config.method.outer_steps
    return {"ks_statistic": 0.9 - 5 * rate - steps / 1000, "model_utility": 0.6 - 3 * rate * rate - steps / 500}


def execute_by_seed(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, Any]:
    """A front along the rate. The seed moves a point's forgetting, and one seed of one trial fails."""
    with (trial_dir.parent.parent / "log.txt").open("a") as stream:
        stream.write(f"{trial_dir.name} {config.method.seed}\n")
    (trial_dir / "model").mkdir(exist_ok=True)
    rate, seed = config.method.inner_lr_scale / 40, config.method.seed or 0
    if config.method.outer_steps == 0:
        return {"ks_statistic": 0.9, "model_utility": 0.9}
    if seed == 2 and (trial_dir.parent.parent / "fail").exists():
        raise NonFiniteLossError("The loss became NaN")
    return {"ks_statistic": 0.9 - 5 * rate + 0.01 * seed, "model_utility": 0.6 - 3 * rate * rate}


def execute_then_die_at_the_next_trial(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, Any]:
    """The closed form. The first process dies once it is given to a second trial, before that trial runs."""
    from tune.execution.trainable import UnlearningTrial

    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("self"), UnlearningTrial):
        assert frame.f_back is not None
        frame = frame.f_back
    # Ray Tune derives a class with a method of its own.
    actor, flag = type(frame.f_locals["self"]), trial_dir.parent.parent / "died"
    reset = actor.reset_config

    def die_once(self: UnlearningTrial, new_config: dict[str, Any]) -> bool:
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return bool(reset(self, new_config))

    actor.reset_config = die_once  # type: ignore[method-assign]
    return execute_closed_form(config, cluster, trial_dir, prepared)


class Recorder(SearchCallback):
    def __init__(self) -> None:
        self.seen: list[Progress] = []
        self.ended: list[SearchResult] = []
        self.trials: list[FinishedTrial] = []

    def on_trial_end(self, trial: FinishedTrial) -> None:
        self.trials.append(trial)

    def on_progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def on_end(self, result: SearchResult) -> None:
        self.ended.append(result)


def quarrel(trial: FinishedTrial) -> None:
    raise RuntimeError(f"I do not like trial {trial.number}")


@pytest.fixture(scope="module")
def mixed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Recorder]:
    run_dir = tmp_path_factory.mktemp("mixed") / "run"
    recorder = Recorder()
    search = ParetoSearch({}, num_trials=12, run_dir=run_dir, executor=execute, callbacks=[quarrel, recorder])
    with pytest.warns(UserWarning, match="quarrel raised RuntimeError"):
        return search.run(), recorder


def runs_per_trial(run_dir: Path, word: str = "") -> Counter[int]:
    lines = (run_dir / "log.txt").read_text().splitlines()
    return Counter(int(line.split()[-1]) for line in lines if line.startswith(word))


def test_a_search_on_ray_stays_under_its_name_whatever_that_is(cluster: None, tmp_path: Path) -> None:
    """A URL would end at ``?`` or ``#``; labels of metrics are ASCII; patterns hold ``[`` and ``*``."""
    name = "é?mode=ro#b%20c [x]*{y}\n~"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = ParetoSearch({}, num_trials=3, run_dir=tmp_path / name, executor=execute_closed_form).run()
        again = ParetoSearch.resume(tmp_path / name, ["search.num_trials=4"], execute_closed_form)
    assert (len(result.trials), len(again.trials)) == (3, 4)
    assert os.listdir(tmp_path) == [name]
    assert {"study.log", "front.png", "search.json", "trials"} <= set(os.listdir(tmp_path / name))


def test_a_trial_that_is_given_a_dead_process_is_tried_again(cluster: None, tmp_path: Path) -> None:
    settings = {"cluster": {"max_failures": 1}, "search": {"max_concurrent_trials": 1}}
    search = ParetoSearch(settings, num_trials=4, run_dir=tmp_path / "run", executor=execute_then_die_at_the_next_trial)
    with pytest.warns(UserWarning, match="trial 1 is tried again: the trial's process died"):
        result = search.run()
    assert (tmp_path / "run" / "died").exists()
    assert list(result.trials["state"]) == ["complete"] * 4


def test_every_kind_of_failure_is_told_and_the_search_goes_on(mixed):
    result, _ = mixed
    study = read_study(result.run_dir / "study.log")
    states = {trial.number: trial.state.name for trial in study.trials}
    assert states == {number: "FAIL" if number in (3, 4, 5, 6) else "COMPLETE" for number in range(12)}
    reasons = {number: study.trials[number].user_attrs["reason"] for number in (3, 4, 5, 6)}
    assert "NaN at outer step 2" in reasons[3]
    assert "process died" in reasons[4]
    assert reasons[5] == "RuntimeError: a bug"
    assert "ks_statistic is nan" in reasons[6]
    assert (result.run_dir / "trials" / "00005" / "error.txt").is_file()


def test_crashes_are_tried_again_and_other_failures_are_not(mixed):
    result, _ = mixed
    assert runs_per_trial(result.run_dir) == {number: 2 if number in (4, 5, 7) else 1 for number in range(12)}


def test_every_front_point_is_a_complete_trial_that_kept_its_model(mixed):
    result, _ = mixed
    complete = set(result.trials.loc[result.trials["state"] == "complete", "trial"])
    front = set(result.front["trial"])
    assert front
    assert front <= complete
    kept = {int(path.parent.name) for path in result.run_dir.glob("trials/*/model")}
    assert kept == front


def test_the_tables_show_what_really_ran(mixed):
    result, _ = mixed
    table = pd.read_csv(result.run_dir / "trials.csv")
    assert table["role"].tolist()[:3] == ["target", "published", "sampled"]
    assert table.loc[0, "method.outer_steps"] == 0
    assert table.loc[1, "method.inner_update"] == "sgd"
    assert table.loc[1, "method.similarity_threshold"] == -1
    assert pd.read_csv(result.run_dir / "front.csv")["trial"].tolist() == result.front["trial"].tolist()
    summary = json.loads((result.run_dir / "search.json").read_text())
    assert (summary["complete"], summary["failed"], summary["asked"]) == (8, 4, 12)
    assert summary["hypervolume"] == pytest.approx(result.hypervolume)
    assert 0 < result.hypervolume < 1
    for name in ("config.yaml", "environment.json", "front.png", "report.html"):
        assert (result.run_dir / name).stat().st_size > 0
    assert not (result.run_dir / "ray").exists()


def test_listeners_hear_of_every_trial(mixed):
    result, recorder = mixed
    assert {progress.done for progress in recorder.seen} >= set(range(1, 13))
    assert all(progress.done + len(progress.running) <= 12 for progress in recorder.seen)
    assert recorder.seen[-1].running == ()
    assert [ended.run_dir for ended in recorder.ended] == [result.run_dir]


def test_every_ended_trial_is_told_once_and_as_it_is_stored(mixed):
    result, recorder = mixed
    assert sorted(trial.number for trial in recorder.trials) == list(range(12))
    table = result.trials.set_index("trial")
    for trial in recorder.trials:
        row = table.loc[trial.number]
        assert (trial.state, trial.role) == (row["state"], row["role"])
        assert trial.directory == result.run_dir / "trials" / f"{trial.number:05d}"
        for key, value in trial.settings.items():
            assert value is None or row[key] == value
        if trial.state == "complete":
            assert trial.objectives == {name: row[name] for name in result.config.objectives}
            assert trial.reason is None
        else:
            assert (trial.objectives, trial.reason) == ({}, row["reason"])


def test_asking_by_hand_gives_the_trials_of_a_search_one_at_a_time(cluster, tmp_path):
    settings = {"search": {"max_concurrent_trials": 1, "num_trials": 9}, "seed": 7}
    searched = ParetoSearch(settings, run_dir=tmp_path / "searched", executor=execute_closed_form).run()
    with AskTell(settings, run_dir=tmp_path / "asked") as search:
        while (trial := search.ask()) is not None:
            search.tell(trial, execute_closed_form(trial.config, None, trial.directory, None))
        asked = search.result()
    pd.testing.assert_frame_equal(asked.trials, searched.trials.drop(columns="seconds"))
    assert asked.hypervolume == searched.hypervolume


def test_a_search_that_is_over_returns_its_result(mixed):
    result, _ = mixed
    before = (result.run_dir / "log.txt").read_text()
    again = ParetoSearch.resume(result.run_dir, executor=execute)
    assert again.front["trial"].tolist() == result.front["trial"].tolist()
    assert (result.run_dir / "log.txt").read_text() == before


def test_a_finished_search_can_be_prolonged(mixed, tmp_path):
    result, _ = mixed
    copy = tmp_path / "run"
    shutil.copytree(result.run_dir, copy)
    longer = ParetoSearch.resume(copy, ["search.num_trials=14"], executor=execute)
    assert len(longer.trials) == 14
    assert runs_per_trial(copy)[13] == 1


def test_two_searches_do_not_share_a_directory(mixed):
    result, _ = mixed
    from tune.rundir.search_dir import RunDirectory

    with RunDirectory.open_existing(result.run_dir).lock(), pytest.raises(RunError, match="Another search is running"):
        ParetoSearch.resume(result.run_dir, executor=execute)


def test_a_trial_larger_than_the_cluster_is_refused(cluster, tmp_path):
    settings = {"cluster": {"num_workers": 3, "cpus_per_worker": 2}}
    with pytest.raises(ClusterError, match=r"needs 6 CPUs .* has 2"):
        ParetoSearch(settings, run_dir=tmp_path / "run", executor=execute).run()
    assert not (tmp_path / "run").exists()


def test_trials_with_worker_groups_reserve_nothing_themselves(cluster, tmp_path):
    settings = {"cluster": {"num_workers": 2}, "search": {"num_trials": 3}}
    result = ParetoSearch(settings, run_dir=tmp_path / "run", executor=execute).run()
    assert len(result.trials) == 3


def test_a_full_disk_stops_the_search_and_a_resume_loses_nothing(cluster, tmp_path):
    search = ParetoSearch({}, num_trials=7, run_dir=tmp_path / "run", executor=execute_on_a_full_disk)
    with pytest.raises(StorageError, match=r"No space left .* --resume"):
        search.run()
    assert len(complete_trials(tmp_path / "run")) < 7
    result = ParetoSearch.resume(tmp_path / "run", executor=execute_on_a_full_disk)
    assert result.trials["state"].tolist() == ["complete"] * 7
    assert runs_per_trial(tmp_path / "run") == dict.fromkeys(range(7), 1)


def drive(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_TMPDIR": str(folder)}
    return subprocess.Popen([sys.executable, str(DRIVER), *arguments], env=environment)


def wait_for_lines(path: Path, word: str, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count(word) < count:
        assert process.poll() is None, "the search ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)


# test_compare.py kills a driver in `make test`.
@pytest.mark.long
def test_a_killed_driver_loses_and_repeats_no_trial(ray_folder, tmp_path):
    run_dir = tmp_path / "run"
    first = drive(ray_folder, str(run_dir), "9")
    wait_for_lines(run_dir / "log.txt", "end", 4, first)
    (run_dir / "hold").touch()
    second = drive(ray_folder, str(run_dir), "9", "--resume")
    assert second.wait(timeout=60) != 0, "two drivers at once"
    first.send_signal(signal.SIGKILL)
    first.wait()
    (run_dir / "hold").unlink()
    complete_then = set(complete_trials(run_dir))
    assert len(complete_then) >= 2

    assert drive(ray_folder, str(run_dir), "9", "--resume").wait(timeout=180) == 0
    assert sorted(complete_trials(run_dir)) == list(range(9))
    ends = runs_per_trial(run_dir, "end")
    begins = runs_per_trial(run_dir, "begin")
    assert ends == dict.fromkeys(range(9), 1)
    assert all(begins[number] == 1 for number in complete_then)
    # At most the two trials that were at work began a second time.
    assert sum(begins.values()) <= 9 + 2
    assert json.loads((run_dir / "search.json").read_text())["complete"] == 9


def complete_trials(run_dir: Path) -> list[int]:
    return [trial.number for trial in read_study(run_dir / "study.log").trials if trial.state.name == "COMPLETE"]


def test_an_address_where_nothing_answers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, words in ((UNREACHABLE, "Nothing answers"), ("nonsense", "form host:port")):
        with pytest.raises(ClusterError, match=words):
            ParetoSearch({"cluster": {"address": address}}, run_dir=tmp_path / "run", executor=execute).run()
    assert not (tmp_path / "run").exists()


def test_an_address_where_something_else_answers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="something else listens there"):
            ParetoSearch({"cluster": {"address": address}}, run_dir=tmp_path / "run", executor=execute).run()
    assert not (tmp_path / "run").exists()


def test_the_best_points_run_again_on_further_seeds_and_are_shown_with_their_spread(cluster, tmp_path, capsys):
    run_dir = tmp_path / "run"
    settings = {"search": {"num_trials": 7, "sampler": "random", "baselines": ["target"]}}
    ParetoSearch(settings, run_dir=run_dir, executor=execute_by_seed).run()
    assert SearchResult.load(run_dir).confirmation is None
    (run_dir / "fail").touch()
    result = ParetoSearch.resume(
        run_dir, ["search.confirm_seeds=3", "search.confirm_points=2"], executor=execute_by_seed
    )
    confirmation = result.confirmation
    assert confirmation is not None
    assert confirmation.seeds == (1, 2, 3)
    trials = [point.trial for point in confirmation.points]
    assert len(trials) == 2
    assert 0 not in trials
    for point in confirmation.points:
        own = result.trials.set_index("trial").loc[point.trial]
        assert [run.reason for run in point.runs] == [None, "The loss became NaN", None]
        spread = point.spread("ks_statistic")
        assert spread is not None
        assert (spread.mean, spread.runs) == (pytest.approx(own["ks_statistic"] + 0.02), 2)
        assert {run.metrics["model_utility"] for run in point.runs if run.metrics} == {own["model_utility"]}
        assert not list((run_dir / "confirmation").glob("*/model")), "models of these runs are not kept"
    front = pd.read_csv(run_dir / "front.csv").set_index("trial")
    assert front["confirming_runs"].to_dict() == {trial: 2 if trial in trials else 0 for trial in front.index}
    assert "on seeds 1, 2, 3" in "".join(format_front(result)[0])
    confirmed, found = result.confirmed_hypervolumes or (0, 0)
    assert 0 < confirmed < found

    # A finished confirmation is not made again, and one more seed runs alone.
    before = (run_dir / "log.txt").read_text().splitlines()
    ParetoSearch.resume(run_dir, executor=execute_by_seed)
    assert (run_dir / "log.txt").read_text().splitlines() == before
    ParetoSearch.resume(run_dir, ["search.confirm_seeds=4"], executor=execute_by_seed)
    added = (run_dir / "log.txt").read_text().splitlines()[len(before) :]
    assert sorted(added) == sorted(f"{trial:05d}-seed4 4" for trial in trials)
