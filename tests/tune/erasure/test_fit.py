from __future__ import annotations

import pytest

from ofmu.config.files import apply_overrides, validate
from ofmu.errors import MemoryLimitError
from tune.config import SearchConfig
from tune.erasure import fit
from tune.erasure.fit import plan_of


def config(**engine: object) -> SearchConfig:
    settings = {"device": "cpu", **engine}
    return validate(SearchConfig, {"engine": settings, "search": {"num_trials": 5}, "evaluation": {"batch_size": 64}})


@pytest.mark.slow
def test_a_plan_says_what_a_search_needs():
    found = plan_of(config())
    assert found.change == ()
    assert found.sentence.startswith("Plan: a trial needs ")
    assert "5 trials compute" in found.sentence


@pytest.mark.slow
def test_the_smallest_change_that_fits_is_returned(monkeypatch: pytest.MonkeyPatch):
    """The machine's memory is set, since no test can have a machine that is nearly too small."""
    needed = fit.make_plan(config().unlearn, on_gpu=False).needed
    monkeypatch.setattr(fit, "device_memory", lambda on_gpu: int(needed * 0.99))
    found = plan_of(config())
    assert found.change
    changed = apply_overrides(config().model_dump(mode="json"), found.change)
    assert plan_of(validate(SearchConfig, changed)).change == ()
    monkeypatch.setattr(fit, "device_memory", lambda on_gpu: 1000)
    with pytest.raises(MemoryLimitError, match="take a smaller model or more memory"):
        plan_of(config())
    assert plan_of(config(check_memory=False)).change == ()
