"""Settings that cannot work together are refused with the fix; settings without effect are named."""

from __future__ import annotations

from typing import Any

import pytest

from ofmu.config.files import validate
from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.run_config import UnlearnConfig, override


def config(*overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override({}, overrides))


EXACT = ["method.derivative=exact"]
REFUSED = [
    (["method.derivative=reverse_over_forward", "engine.gradient_checkpointing=true"], "use 'exact', or switch"),
    (
        ["engine.precision=bf16", "method.derivative=central"],
        "needs fp32 weights and compute.*or both derivatives to 'exact'",
    ),
    (["engine.precision=bf16", "model.attention=sdpa"], "set model.attention to 'eager' or 'auto'"),
    (["engine.precision=bf16", "method.derivative=exact", "method.outer_derivative=central"], "needs fp32"),
    (["method.derivative=exact", "model.attention=sdpa"], "set model.attention to 'eager' or 'auto'"),
    (
        ["engine.precision=bf16", "method.derivative=exact", "engine.zero_stage=0"],
        "zero_stage of at least 1",
    ),
    (["engine.offload=cpu", "engine.zero_stage=0"], "zero_stage of at least 1"),
    (["engine.offload=cpu", "engine.backend=torch"], "use engine.backend 'deepspeed'"),
    (["engine.gradient_precision=bf16"], "set engine.precision to 'bf16', or gradient_precision to 'fp32'"),
    (
        ["engine.gradient_precision=bf16", "engine.precision=bf16", "engine.backend=deepspeed", *EXACT],
        "backend to 'torch'",
    ),
    (["engine.gradient_precision=bf16", "engine.precision=bf16", "engine.offload=cpu", *EXACT], "offload to 'none'"),
    (["method.penalty_weight=0.1", "method.penalty_max=0.01"], "penalty_max 0.01 is below method.penalty_weight 0.1"),
    (["method.inner_steps=-1"], "method.inner_steps' has the value -1, but it must be at least 0"),
    (["method.similarity_threshold=1.5"], "method.similarity_threshold' has the value 1.5"),
    (["method.penalty_growth=.inf"], "method.penalty_growth"),
    (["method.innersteps=3"], "Unknown config key 'method.innersteps': did you mean 'method.inner_steps'"),
    (["methods.inner_steps=3"], "Unknown config key 'methods': did you mean 'method'"),
    (["model.is_target=true"], "model.is_target needs model.path"),
    (["reference.source=model"], "needs reference.path"),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED)
def test_what_cannot_work_is_refused_in_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        config(*overrides)
    assert "\n" not in str(caught.value)


def test_without_products_nothing_depends_on_the_derivative() -> None:
    config("method.similarity_weight=0", "method.penalty_weight=0", "engine.precision=bf16", "engine.zero_stage=3")
    # Exact products work at every stage, and in bf16.
    config("method.derivative=exact", "engine.precision=bf16", "engine.zero_stage=3")
    config("method.derivative=reverse_over_forward", "engine.zero_stage=3")
    config("method.derivative=exact", "engine.precision=bf16", "engine.backend=torch", "engine.zero_stage=0")


def test_derivatives_that_are_left_out_are_exact_in_bf16() -> None:
    left_out = config("engine.precision=bf16")
    assert left_out.method == config("engine.precision=bf16", "method.derivative=exact").method
    assert config().method.model_dump()["derivative"] == "central"
    objects = UnlearnConfig(engine=EngineConfig(precision="bf16"), method=OfmuConfig(inner_steps=2))
    assert objects.method == OfmuConfig(inner_steps=2, derivative="exact")
    assert config("engine.precision=bf16", "method.name=npo").method.name == "npo"
    with pytest.raises(ValueError, match="needs fp32"):
        UnlearnConfig(engine=EngineConfig(precision="bf16"), method=OfmuConfig(derivative="central"))


@pytest.mark.parametrize(("width", "fix"), [(63, 64), (60, 64), (3, 8), (68, 64)])
def test_a_width_that_does_not_suit_the_heads_is_refused_with_the_nearest_one(width: int, fix: int) -> None:
    sentence = f"hidden_size {width} is no multiple of 8, twice the number of heads: set it to {fix}"
    with pytest.raises(ConfigError, match=sentence):
        validate(UnlearnConfig, {"model": {"scratch": {"hidden_size": width, "num_heads": 4}}})


def test_stored_configs_without_the_precision_of_gradients_stay_equal() -> None:
    assert "gradient_precision" not in config().model_dump(mode="json")["engine"]
    changed = config("method.derivative=exact", "engine.precision=bf16", "engine.gradient_precision=bf16")
    stored = changed.model_dump(mode="json")
    assert stored["engine"]["gradient_precision"] == "bf16"
    assert validate(UnlearnConfig, stored) == changed


IDLE = [
    (["method.similarity_weight=0", "method.similarity_threshold=0.3"], "similarity_threshold has no effect"),
    (["method.similarity_threshold=1"], "the hinge never opens"),
    (["method.penalty_weight=0", "method.penalty_growth=2"], "penalty_growth and penalty_max have no effect"),
    (["method.penalty_weight=0", "method.outer_derivative=central"], "outer_derivative has no effect"),
    (["method.outer_update=sgd", "method.weight_decay=0.1"], "weight_decay has no effect"),
    (["method.derivative=exact", "method.derivative_check_every=1"], "derivative_check_every has no effect"),
]


@pytest.mark.parametrize(("overrides", "sentence"), IDLE)
def test_what_has_no_effect_is_named(overrides: list[str], sentence: str) -> None:
    assert any(sentence in note for note in config(*overrides).ineffective())


def test_a_setting_that_replaces_a_variants_is_named_with_both_values() -> None:
    changed = config("method.variant=first_order", "method.penalty_weight=0.5", "method.outer_steps=4")
    assert changed.departures() == {
        "method.penalty_weight": "method.penalty_weight is 0.5, which replaces the 0.0 of method.variant 'first_order'"
    }
    assert list(config("method.variant=paper", "method.forget_margin=2").departures()) == ["method.forget_margin"]
    # The same value as the variant's, no variant, and a method that has none.
    for entries in (["method.variant=first_order", "method.penalty_weight=0"], ["method.penalty_weight=0.5"]):
        assert config(*entries).departures() == {}
    assert config("method.name=npo").departures() == {}
    assert UnlearnConfig.model_validate(changed.model_dump(mode="json")).departures() == changed.departures()


def test_the_defaults_are_all_effective() -> None:
    assert config().ineffective() == []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("seed=3", 3), ("seed=1e2", 100.0), ("data.path=null", None), ("data.path=a=b", "a=b")],
)
def test_overrides_are_read_as_yaml(entry: str, expected: Any) -> None:
    value: Any = override({}, [entry])
    for key in entry.partition("=")[0].split("."):
        value = value[key]
    assert value == expected


@pytest.mark.parametrize("entry", ["seed", "=3", "seed.x=1"])
def test_malformed_overrides_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError):
        override({"seed": 1}, [entry])
