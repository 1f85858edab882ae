"""What a plan decides about the engine, and that nothing else is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.capacity import decide_single_run, decide_trial
from cluster.config import ClusterConfig
from ofmu.config.files import validate
from ofmu.errors import ConfigError, MemoryLimitError
from ofmu.plan import check
from ofmu.plan.check import check_fit
from ofmu.plan.decision import decide_engine, decide_run
from ofmu.plan.plan import make_plan
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from ofmu.trainer import unlearn
from tune.callbacks.base import EngineDecided
from tune.search import ParetoSearch

AUTO = {"zero_stage": "auto", "gradient_checkpointing": "auto", "offload": "auto", "device": "cpu"}
SCRATCH = {"hidden_size": 128, "intermediate_size": 384, "num_layers": 6, "num_heads": 4, "vocab_size": 512}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 24, "num_heads": 8, "vocab_size": 512}
"""400M weights: below 20M, the buffers of ZeRO-3 take more than it saves."""
METHOD = {"name": "simnpo", "steps": 2, "batch_size": 16}


@pytest.fixture
def mapping(tiny_mapping: dict[str, Any]) -> dict[str, Any]:
    without_generation = {**tiny_mapping.get("evaluation", {}), "rouge": False, "batch_size": 2}
    return {**tiny_mapping, "model": {"scratch": SCRATCH}, "method": METHOD, "evaluation": without_generation}


def config_of(mapping: dict[str, Any], **engine: Any) -> UnlearnConfig:
    return UnlearnConfig.model_validate({**mapping, "engine": {**AUTO, **engine}})


def needed(mapping: dict[str, Any], ranks: int, **engine: Any) -> float:
    explicit = {"zero_stage": 2, "gradient_checkpointing": False, "offload": "none"}
    return make_plan(config_of(mapping, **explicit | engine), ranks=ranks, on_gpu=False).needed


def chosen(config: UnlearnConfig) -> tuple[Any, ...]:
    return config.engine.zero_stage, config.engine.gradient_checkpointing, config.engine.offload


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(check, "device_memory", lambda *, on_gpu: int(size))
    monkeypatch.setattr(check, "host_memory", lambda: int(size))


def test_a_small_run_gets_the_defaults_without_a_plan(mapping, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the exact plan takes seconds, and this run is far below the memory")

    monkeypatch.setattr("ofmu.plan.plan.make_plan", fail)
    with_memory(monkeypatch, 10**12)
    decision = decide_engine(config_of(mapping))
    assert chosen(decision.config) == (2, False, "none")
    assert decision.sentence is not None
    assert decision.sentence.startswith(
        "auto: engine.zero_stage=2 engine.gradient_checkpointing=false engine.offload=none, since a rank needs far less"
    )
    assert decision.config.engine.undecided == ()


@pytest.mark.slow
def test_the_fastest_engine_that_fits_is_taken(mapping, monkeypatch):
    mapping |= {"model": {"scratch": LARGE}, "method": {**METHOD, "batch_size": 64}}
    stage_2, recomputed, stage_3 = (
        needed(mapping, 4, **engine)
        for engine in ({}, {"gradient_checkpointing": True}, {"zero_stage": 3, "gradient_checkpointing": True})
    )
    assert stage_3 < recomputed < stage_2
    fits = {}
    for name, memory in {"all": stage_2, "recomputing": recomputed, "sharding": stage_3}.items():
        with_memory(monkeypatch, 4.01 * memory)
        fits[name] = chosen(decide_engine(config_of(mapping), ranks=4, on_gpu=False).config)
    assert fits["all"] == (2, False, "none")
    assert fits["recomputing"] == (2, True, "none")
    assert fits["sharding"] == (3, True, "none")
    with_memory(monkeypatch, 4.01 * stage_3)
    decided = decide_engine(config_of(mapping), ranks=4, on_gpu=False).config
    check_fit(decided, ranks=4, on_gpu=False)


@pytest.mark.slow
def test_an_explicit_setting_stays_and_the_refusal_stands(mapping, monkeypatch):
    enough = needed(mapping, 1, gradient_checkpointing=True)
    with_memory(monkeypatch, 1.01 * enough)
    assert chosen(decide_engine(config_of(mapping)).config) == (2, True, "none")
    kept = decide_engine(config_of(mapping, gradient_checkpointing=False))
    assert chosen(kept.config) == (2, False, "none")
    assert kept.sentence is not None
    assert "engine.gradient_checkpointing" not in kept.sentence
    assert "no choice makes a rank fit" in kept.sentence
    with pytest.raises(MemoryLimitError, match=r"set .*, which needs"):
        check_fit(kept.config)


def test_nothing_is_decided_without_auto(mapping):
    config = config_of(mapping, zero_stage=1, gradient_checkpointing=True, offload="none")
    decision = decide_engine(config)
    assert decision.config is config
    assert decision.sentence is None


def test_a_run_that_continues_keeps_its_engine(mapping, monkeypatch):
    with_memory(monkeypatch, 10**12)
    stored = {"engine": {"zero_stage": 3, "gradient_checkpointing": True, "offload": "none"}}
    decision = decide_run(config_of(mapping), stored)
    assert chosen(decision.config) == (3, True, "none")
    assert str(decision.sentence).endswith("as at the run's start")


@pytest.mark.slow
def test_a_cluster_elsewhere_gets_the_defaults(mapping, monkeypatch):
    with_memory(monkeypatch, 1)
    decision = decide_trial(config_of(mapping), ClusterConfig(address="ray://10.0.0.1:10001", num_workers=2))
    assert chosen(decision.config) == (2, False, "none")
    assert "the machines of the cluster are unknown" in str(decision.sentence)
    here = decide_single_run(config_of(mapping), ClusterConfig(num_workers=2), None)
    assert "no choice makes a rank fit" in str(here.sentence)


def test_a_search_decides_before_it_starts(mapping, monkeypatch, tmp_path):
    class StartedError(Exception):
        pass

    def start(run: Any, config: Any, *_: Any) -> None:
        seen.append(config)
        raise StartedError

    with_memory(monkeypatch, 10**12)
    seen, events = list[Any](), list[Any]()
    monkeypatch.setattr("tune.search.RaySearch", start)
    search = ParetoSearch({**mapping, "engine": AUTO}, run_dir=tmp_path / "search")
    monkeypatch.setattr(search._callbacks, "on_prepare", events.append)
    with pytest.raises(StartedError):
        search.run()
    assert chosen(seen[0]) == (2, False, "none")
    assert [type(event) for event in events] == [EngineDecided]


@pytest.mark.slow
def test_a_run_stores_what_was_decided(tiny_mapping, tmp_path: Path, monkeypatch):
    with_memory(monkeypatch, 10**12)
    config = UnlearnConfig.model_validate({**tiny_mapping, "engine": {**tiny_mapping.get("engine", {}), **AUTO}})
    first = unlearn(config, tmp_path / "run")
    stored = RunFiles(tmp_path / "run").read_config()
    assert stored is not None
    assert (stored["engine"]["zero_stage"], stored["engine"]["gradient_checkpointing"]) == (2, False)
    with_memory(monkeypatch, 1)
    assert unlearn(config, tmp_path / "run").metrics == first.metrics


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("zero_stage", 7, r"'engine\.zero_stage' has the value 7, but it must be at most 3 or 'auto'"),
        ("zero_stage", "atuo", r"'engine\.zero_stage' has the value 'atuo', but it must be a whole number or 'auto'"),
        (
            "gradient_checkpointing",
            "sometimes",
            r"'engine\.gradient_checkpointing' has .* must be true or false or 'auto'",
        ),
    ],
)
def test_a_wrong_value_is_named_with_all_that_is_right(key, value, message):
    with pytest.raises(ConfigError, match=message):
        validate(UnlearnConfig, {"engine": {key: value}})
