"""Callbacks of a search: functions and listeners, and what becomes of what they raise."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from ofmu.errors import ConfigError
from tune.callbacks.base import SearchListener
from tune.callbacks.callback_list import Audience
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


class Recorder(SearchListener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_prepare(self, event):
        self.heard.append(event["event"])

    def on_trial_end(self, trial):
        self.heard.append(str(trial.number))


def test_functions_and_listeners_hear_in_order():
    heard: list[tuple[str, int]] = []
    recorder = Recorder()
    audience = Audience(
        [lambda trial: heard.append(("a", trial.number)), recorder, lambda trial: heard.append(("b", 0))]
    )
    audience.on_prepare({"event": "start"})
    audience.on_trial_end(TRIAL)
    assert heard == [("a", 3), ("b", 0)]
    assert recorder.heard == ["start", "3"]


def test_what_a_callback_raises_is_said_once_and_keeps_nobody_from_hearing():
    calls, recorder = [], Recorder()

    def broken(trial):
        calls.append(trial.number)
        raise KeyError("loss")

    audience = Audience([broken, recorder])
    with pytest.warns(
        UserWarning, match=r"broken raised KeyError: 'loss' \(test_callback_list.py, line \d+\)"
    ) as caught:
        audience.on_trial_end(TRIAL)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audience.on_trial_end(TRIAL)
    assert calls == [3, 3], "it is still called"
    assert recorder.heard == ["3", "3"]


def test_the_users_own_interrupt_goes_through():
    def interrupt(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Audience([interrupt]).on_trial_end(TRIAL)


@pytest.mark.parametrize("wrong", ["print", 3, Recorder])
def test_what_is_no_callback_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"callbacks\[1\] is .* neither a tune.SearchListener nor a function"):
        Audience([print, wrong])
