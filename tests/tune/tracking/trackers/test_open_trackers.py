"""Trackers write what their own packages read back. Nothing leaves this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from ofmu.errors import ConfigError
from tune.config import SearchConfig, search_config
from tune.results.result import SearchResult
from tune.study.finished_trial import FinishedTrial
from tune.tracking.trackers.open_trackers import open_trackers
from tune.tracking.trackers.tracker import Tracker, curves_of

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="the package wandb is not installed")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="the package mlflow is not installed")


def config(*trackers: str) -> SearchConfig:
    return search_config({"tracking": {"trackers": list(trackers), "project": "ours"}})


def finished(folder: Path, number: int, state: str = "complete") -> FinishedTrial:
    directory = folder / "trials" / f"{number:05d}"
    directory.mkdir(parents=True)
    lines = [{"outer_step": step, "forget_loss": float(step * number), "similarity": None} for step in (1, 2)]
    (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"outer_')
    return FinishedTrial(
        number=number,
        state=state,  # type: ignore[arg-type]
        role="sampled",
        settings={"method.outer_steps": number, "method.inner_update": "adamw"},
        objectives={"ks_statistic": 0.1 * number, "model_utility": 0.5},
        metrics={"ks_statistic": 0.1 * number, "model_utility": 0.5, "mine:metric": 2.0, "forget_rouge": None},
        directory=directory,
        reason="it ran out of memory" if state == "failed" else None,
    )


def result_of(folder: Path, settings: SearchConfig) -> SearchResult:
    (folder / "report.html").write_text("<p>report</p>")
    Image.new("RGB", (8, 6), (10, 200, 30)).save(folder / "front.png")
    table = pd.DataFrame({"trial": [1, 2], "ks_statistic": [0.1, 0.2], "reason": [None, "x"]})
    return SearchResult(folder, settings, 0.75, {}, lambda: table, lambda: table)


def follow(tracker: Tracker, folder: Path, numbers: tuple[int, ...] = (1, 2)) -> None:
    """Let a tracker follow a whole search."""
    tracker.open()
    tracker._is_open = True
    for number in numbers:
        tracker.on_trial_end(finished(folder, number, "failed" if number == 2 else "complete"))
        tracker.log_search(number, {"hypervolume": 0.25 * number})
    tracker.on_end(result_of(folder, tracker.config))


def test_a_list_or_a_name_is_enough() -> None:
    for given in (["tensorboard"], "tensorboard", {"trackers": ["tensorboard"]}):
        assert search_config({"tracking": given}).tracking.trackers == ["tensorboard"]
    assert search_config({}).tracking.trackers == []
    with pytest.raises(ConfigError, match="tracking"):
        search_config({"tracking": ["comet"]})


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    assert list(curves_of(finished(tmp_path, 3))) == [(1, {"forget_loss": 3.0}), (2, {"forget_loss": 6.0})]


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, f"{module}.entities", None)
        with pytest.raises(ConfigError, match=rf"pip install 'ofmu\[{name}\]'"):
            open_trackers(tmp_path, config(name))
    assert not any(tmp_path.iterdir())


def test_tensorboard_reads_scalars_curves_and_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - says that the package is whole

    (tracker,) = open_trackers(tmp_path, config("tensorboard"))
    follow(tracker, tmp_path)

    def values(folder: str) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for path in sorted((tmp_path / "tensorboard" / folder).rglob("events*")):
            data = path.read_bytes()
            while data:
                size = int.from_bytes(data[:8], "little")  # length, its checksum, the record, its checksum
                event = Event.FromString(data[12 : 12 + size])
                data = data[16 + size :]
                for value in event.summary.value:
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
        return found

    search = values("search")
    assert search["hypervolume"] == [(1, 0.25), (2, 0.5)]
    assert "front" in search
    assert values("trial-00002")["curves/forget_loss"] == [(1, 2.0), (2, 4.0)]
    assert values("trial-00001")["model_utility"][0][1] == 0.5


@needs_wandb
def test_wandb_writes_offline_runs_in_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = open_trackers(tmp_path, config("wandb"))
    follow(tracker, tmp_path)
    runs = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 3
    assert sum(name.endswith(tracker.search_id) for name in runs) == 1
    assert sum(name.endswith("trial-00001") for name in runs) == 1


@needs_wandb
def test_wandb_without_a_login_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom tune.config import search_config\n"
        "from tune.tracking.trackers.open_trackers import open_trackers\n"
        f"open_trackers(Path({str(tmp_path)!r}), search_config({{'tracking': ['wandb']}}))"
    )
    hidden = ("WANDB_MODE", "WANDB_API_KEY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_CONFIG_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "The tracker wandb has no login: run 'wandb login'" in done.stderr


@needs_mlflow
def test_mlflow_has_nested_runs_and_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tracker,) = open_trackers(tmp_path, config("mlflow"))
    follow(tracker, tmp_path)
    # A resumed search continues the same run.
    (again,) = open_trackers(tmp_path, config("mlflow"))
    follow(again, tmp_path, numbers=(3,))

    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("ours")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {tmp_path.name, "trial-00001", "trial-00002", "trial-00003"}
    search = runs[tmp_path.name]
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs.values()} == {None, search.info.run_id}
    assert search.data.metrics["hypervolume"] == 0.75
    assert search.data.params["tracking.project"] == "ours"
    trial = runs["trial-00002"]
    assert trial.info.status == "FAILED"
    assert trial.data.tags["ofmu.reason"] == "it ran out of memory"
    assert trial.data.params["method.inner_update"] == "adamw"
    assert trial.data.metrics["mine.metric"] == 2
    history = client.get_metric_history(trial.info.run_id, "curves/forget_loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 4.0)]
    names = {artifact.path for artifact in client.list_artifacts(search.info.run_id)}
    assert names == {"front.png", "report.html"}


@needs_mlflow
def test_an_mlflow_server_that_is_down_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="cannot use the server"):
        open_trackers(tmp_path, config("mlflow"))
