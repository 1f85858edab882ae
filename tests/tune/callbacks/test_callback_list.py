"""Callbacks of a search: functions, objects, and exceptions in them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from ofmu.errors import ConfigError
from tune.callbacks.base import SearchCallback
from tune.callbacks.callback_list import CallbackList
from tune.study.finished_trial import FinishedTrial

TRIAL = FinishedTrial(
    number=3,
    state="complete",
    role="sampled",
    settings={"method.inner_lr": 0.1},
    objectives={"ks_statistic": 0.5, "model_utility": 0.6},
    metrics={},
    directory=Path("trials/00003"),
    reason=None,
)


class Recorder(SearchCallback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_prepare(self, event):
        self.calls.append(event["event"])

    def on_trial_end(self, trial):
        self.calls.append(str(trial.number))


def test_functions_and_objects_are_called_in_order():
    calls: list[tuple[str, int]] = []
    recorder = Recorder()
    callbacks = CallbackList(
        [lambda trial: calls.append(("a", trial.number)), recorder, lambda trial: calls.append(("b", 0))]
    )
    callbacks.on_prepare({"event": "start"})
    callbacks.on_trial_end(TRIAL)
    assert calls == [("a", 3), ("b", 0)]
    assert recorder.calls == ["start", "3"]


def test_an_exception_warns_once_and_stops_no_other_callback():
    calls, recorder = [], Recorder()

    def broken(trial):
        calls.append(trial.number)
        raise KeyError("loss")

    callbacks = CallbackList([broken, recorder])
    with pytest.warns(
        UserWarning, match=r"broken raised KeyError: 'loss' \(test_callback_list.py, line \d+\)"
    ) as caught:
        callbacks.on_trial_end(TRIAL)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callbacks.on_trial_end(TRIAL)
    assert calls == [3, 3], "a callback that raised is still called"
    assert recorder.calls == ["3", "3"]


def test_an_interrupt_in_a_callback_is_raised():
    def interrupt(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CallbackList([interrupt]).on_trial_end(TRIAL)


@pytest.mark.parametrize("wrong", ["print", 3, Recorder])
def test_an_object_that_is_no_callback_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"callbacks\[1\] is .* neither a tune.SearchCallback nor a function"):
        CallbackList([print, wrong])
