from __future__ import annotations

import pytest
import torch

from ofmu.config.files import apply_overrides, validate
from ofmu.errors import ConfigError, MemoryLimitError
from tune.config import SearchConfig
from tune.erasure import fit
from tune.erasure.fit import check_device_of, plan_of


def config(**engine: object) -> SearchConfig:
    settings = {"device": "cpu", **engine}
    return validate(SearchConfig, {"engine": settings, "search": {"num_trials": 5}, "evaluation": {"batch_size": 64}})


@pytest.mark.slow
def test_a_plan_says_what_a_search_needs():
    found = plan_of(config())
    assert found.change == ()
    assert found.sentence.startswith("Plan: a trial needs ")
    assert "5 trials are expected to compute from " in found.sentence
    assert found.sentence.endswith("without the runs on further seeds")
    assert plan_of(config(), hours=0.02).sentence.endswith("as many trials as 0.02 hours allow, at most 5")


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


@pytest.mark.parametrize(
    ("cluster", "refused"),
    [
        ({}, True),
        ({"num_workers": 2}, True),
        ({"num_workers": 2, "gpus_per_worker": 1}, False),  # Ray says how many GPUs there are
        ({"address": "10.0.0.1:6379"}, False),
    ],
)
def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch, cluster: dict[str, object], refused: bool):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mapping = {"engine": {"device": "cuda"}, "cluster": cluster}
    if not refused:
        check_device_of(mapping)
        return
    with pytest.raises(ConfigError, match=r"^engine\.device is 'cuda', but no GPU is visible: use 'auto' or 'cpu'$"):
        check_device_of(mapping)


@pytest.mark.slow
def test_a_plan_for_gpus_that_are_not_here_compares_with_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for gpus in (1, "auto"):
        workers = {"cluster": {"num_workers": 2, "gpus_per_worker": gpus}}
        assert (
            plan_of(validate(SearchConfig, {**config(device="cuda").model_dump(mode="json"), **workers})).change == ()
        )
