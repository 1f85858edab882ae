"""The hooks into Ray Tune's loop when the disk refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ofmu.errors import StorageError
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.execution.trial_source import TrialSource
from tune.execution.tune_callbacks import StorageErrorStopper, TrialErrorCallback, crash_reason


class Source(TrialSource[int]):
    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str | None] = []
        self.taken_back: list[int] = []

    def _take_back(self, trial: int) -> None:
        self.taken_back.append(trial)

    def _start_next(self) -> tuple[int, TrialSpec] | None:
        return None

    def _store_end(self, trial: int, outcome: TrialOutcome) -> None:
        self.reasons.append(outcome.failure)


def crashed(directory: Path, text: str = "Failure # 1\nRuntimeError: a bug\n") -> Any:
    error_file = directory.parent / "ray-error.txt"
    error_file.write_text(text)
    return SimpleNamespace(trial_id="a", error_file=str(error_file), config={"trial_dir": str(directory), "number": 3})


def refuse() -> None:
    raise StorageError("Cannot write trials.csv (No space left on device): free some space there")


def test_a_report_that_cannot_be_written_when_a_trial_starts_stops_the_search():
    source = Source()
    TrialErrorCallback(source, refuse).on_trial_start(0, [], None)
    assert "No space left" in str(source.stopped_by)
    assert StorageErrorStopper(source).stop_all()


def test_the_text_of_a_crash_is_kept_beside_the_trial(tmp_path):
    source = Source()
    source._running["a"] = 3
    TrialErrorCallback(source, lambda: None).on_trial_error(0, [], crashed(tmp_path / "00003"))
    assert (tmp_path / "00003" / "error.txt").read_text().endswith("a bug\n")
    assert source.reasons == ["RuntimeError: a bug"]
    assert source.stopped_by is None


@pytest.mark.parametrize("place", ["a file", "a file/00003"])
def test_a_crash_whose_text_cannot_be_written_stops_the_search(tmp_path, place):
    (tmp_path / "a file").write_text("")
    source = Source()
    TrialErrorCallback(source, lambda: None).on_trial_error(
        0, [], SimpleNamespace(trial_id="a", error_file=None, config={"trial_dir": str(tmp_path / place), "number": 3})
    )
    assert isinstance(source.stopped_by, StorageError)


DEAD = "Failure # {}\nThe actor died unexpectedly before finishing this task.\n\tactor_id: {}\n"
TWICE = DEAD.format(1, "a1") + DEAD.format(2, "a1")
"""One death, as Ray Tune tells it of a trial that was given a dead process."""


@pytest.mark.parametrize(
    ("text", "max_failures", "tries", "words"),
    [
        (TWICE, 2, 2, 0),
        (TWICE, -1, 5, 0),
        (TWICE, 0, 0, 0),
        (DEAD.format(1, "a1") + DEAD.format(2, "b2"), 1, 0, 0),
        (DEAD.format(1, "a1"), -1, 5, 5),
        ("Failure # 1\nRuntimeError: a bug\n", 2, 0, 0),
    ],
)
def test_a_trial_that_was_given_a_dead_process_is_handed_out_again(tmp_path, text, max_failures, tries, words):
    source = Source()
    callback = TrialErrorCallback(source, lambda: None, max_failures)
    trial = crashed(tmp_path / "00003", text)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(5):
            source._running["a"] = 3
            callback.on_trial_error(0, [], trial)
    assert source.taken_back == [3] * tries
    assert len(source.reasons) == 5 - tries
    assert len(told) == words


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "the GPU ran out of memory"),
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "Ray killed"),
    ],
)
def test_the_memory_that_ran_out_is_named(error, said):
    assert said in crash_reason(f"Failure # 1 (occurred at 2026-01-01)\n{error}\n")
