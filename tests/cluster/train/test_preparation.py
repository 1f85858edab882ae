"""Preparation in a real worker group: a driver without a GPU or much memory hands the work to the trials' workers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.train.preparation import prepare
from group_runs import kill_a_worker, wait_for_free_cpus
from ofmu import preparer
from ofmu.config.files import validate
from ofmu.errors import NonFiniteLossError, StorageError
from ofmu.evaluation.scores import Scores
from ofmu.run_config import UnlearnConfig, override
from ofmu.tasks.events import PartReady, PreparationEvent, TrainingEpoch

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TWO = ClusterConfig(num_workers=2, max_failures=1)
PARTS = ["base", "target", "target_scores", "retrain", "reference_scores"]


@pytest.fixture(scope="module", autouse=True)
def cluster(two_cpus_with_dashboard: None) -> Iterator[None]:
    yield
    wait_for_free_cpus(2)


def with_cache(mapping: dict[str, Any], cache: Path, *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, ["engine.zero_stage=3", f"cache_dir={cache}", *overrides]))


def test_workers_make_what_one_process_makes_and_the_driver_finds_it(
    tiny_mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[PreparationEvent] = []
    config = with_cache(tiny_mapping, tmp_path / "cache", "training.epochs=3")
    monkeypatch.setattr(preparer, "prepare", None)  # the driver must not train

    together = prepare(config, TWO, events.append)

    assert [event.part for event in events if isinstance(event, PartReady)] == PARTS
    assert [event.epoch for event in events if isinstance(event, TrainingEpoch)] == [1, 2, 3, 1, 2, 3]
    assert dict(together.created) == dict.fromkeys(PARTS, True)
    assert together.costs["target"]["ranks"] == 2
    monkeypatch.undo()
    alone = preparer.prepare(with_cache(tiny_mapping, tmp_path / "other", "training.epochs=3"))
    for part in ("target_scores", "reference_scores"):
        expected, actual = Scores.load(getattr(alone, part)), Scores.load(getattr(together, part))
        for name, rows in expected.sets.items():
            theirs = [row.answer.nll for row in rows]
            assert [row.answer.nll for row in actual.sets[name]] == pytest.approx(theirs, rel=1e-3)

    events.clear()
    again = prepare(config, TWO, events.append)
    assert dict(again.created) == dict.fromkeys(PARTS, False)
    assert again.target == together.target
    assert [event.part for event in events if isinstance(event, PartReady)] == PARTS
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["models", "scores"]


@pytest.mark.long
def test_a_killed_worker_costs_one_restart(tiny_mapping: dict[str, Any], tmp_path: Path, ray_folder: Path) -> None:
    trained: list[str] = []

    def kill_once(event: PreparationEvent) -> None:
        if isinstance(event, TrainingEpoch):
            if not trained:
                kill_a_worker(ray_folder)
            trained.append(event.part)

    prepared = prepare(with_cache(tiny_mapping, tmp_path / "cache", "training.epochs=8"), TWO, kill_once)
    assert prepared.retrain is not None
    assert prepared.costs["target"]["ranks"] == 2


def test_an_error_of_the_training_reaches_the_driver_as_one_sentence(
    tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    config = with_cache(tiny_mapping, tmp_path / "cache", "training.learning_rate=1e20", "training.epochs=40")
    with pytest.raises(NonFiniteLossError, match=r"lower training.learning_rate \(it is 1e\+20\)"):
        prepare(config, TWO)


def test_a_cache_that_the_driver_does_not_see_is_named(
    tiny_mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_cache(tiny_mapping, tmp_path / "cache")
    # The folder is gone as it would be on another node.
    hide = lambda *_: shutil.rmtree(tmp_path / "cache")  # noqa: E731
    monkeypatch.setattr("cluster.train.preparation._prepare_in_group", hide)
    (tmp_path / "cache").mkdir()
    with pytest.raises(StorageError, match=r"cache does not hold them here: set cache_dir to a directory that all"):
        prepare(config, TWO)
