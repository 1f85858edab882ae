"""The changes that a plan proposes: none of them is needless, and each says what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from ofmu.plan.check import gib, refusal
from ofmu.plan.plan import Candidate, Plan, make_plan
from ofmu.run_config import UnlearnConfig

SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_layers": 2, "num_heads": 4, "vocab_size": 1024}
"""A model whose weights need more than its activations."""


@pytest.fixture
def mapping(tiny_mapping: dict[str, Any]) -> dict[str, Any]:
    return {
        **tiny_mapping,
        "model": {"scratch": SHAPE},
        "evaluation": {"batch_size": 1, "max_new_tokens": 4},
        "engine": {"gradient_checkpointing": True},
    }


def plan_of(mapping: dict[str, Any], budget: float = 1.0, **sections: Any) -> Plan:
    return make_plan(UnlearnConfig.model_validate({**mapping, **sections}), ranks=1, on_gpu=True, budget=budget)


@pytest.mark.parametrize(
    ("first", "second", "needless"),
    [
        ((("a",), 5.0, 0.0), (("a", "b"), 5.0, 0.0), True),
        ((("c",), 4.0, 0.0), (("a", "b"), 5.0, 0.0), True),
        ((("a",), 5.0, 0.0), (("a", "b"), 4.0, 0.0), False),
        ((("a",), 5.0, 9.0), (("a", "b"), 5.0, 0.0), False),
        ((("a", "b"), 3.0, 0.0), (("a",), 5.0, 0.0), False),
        ((("a",), 4.0, 0.0), (("b",), 5.0, 0.0), False),
        ((("a",), 5.0, 0.0), (("a",), 5.0, 0.0), True),
    ],
)
def test_a_longer_change_that_saves_nothing_is_needless(first: Any, second: Any, needless: bool) -> None:
    assert Candidate(*first).makes_needless(Candidate(*second)) is needless


@pytest.mark.slow
def test_no_change_is_proposed_twice_or_is_needless(mapping: dict[str, Any]) -> None:
    found = list(plan_of(mapping).candidates())
    assert len({candidate.overrides for candidate in found}) == len(found) > 3
    for index, candidate in enumerate(found):
        assert not any(earlier.makes_needless(candidate) for earlier in found[:index])


@pytest.mark.slow
def test_adapters_over_weights_in_bf16_come_before_weights_in_4_bits(mapping: dict[str, Any]) -> None:
    method = {"name": "simnpo", "batch_size": 2}
    needed = {candidate.overrides: candidate.needed for candidate in plan_of(mapping, method=method).candidates()}
    order = list(needed)
    whole, short = ("model.adapter.kind=lora",), ("model.adapter.kind=lora", "engine.precision=bf16")
    assert needed[short] < needed[whole]
    in_4_bits = next(entries for entries in order if "model.adapter.quantization=4bit" in entries)
    assert order.index(whole) < order.index(short) < order.index(in_4_bits)


@pytest.mark.slow
def test_offload_says_how_much_host_memory_it_takes(
    mapping: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {**SHAPE, "hidden_size": 512, "num_layers": 6}
    mapping = {**mapping, "model": {"scratch": shape}, "method": {"batch_size": 2}}
    found = list(plan_of(mapping).candidates())
    offloaded = next(candidate for candidate in found if candidate.offloads)
    plan = plan_of(mapping, engine={**mapping["engine"], "offload": "cpu"})
    host = max(phase.host for phase in plan.memory.phases if phase.name != "preparation")
    assert offloaded.host == host > 2 * found[0].host
    # Among the changes that fit this budget, the offload is the first one.
    fits = f"set engine.offload=cpu, which needs {gib(offloaded.needed)} and {gib(host)} of host memory a rank"
    assert fits in refusal(plan_of(mapping, budget=offloaded.needed))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(mapping))
    with pytest.raises(SystemExit):
        main(["plan", str(file), "--gpus", "1", "--memory", f"{(offloaded.needed + 1) / 1e9:.12f}"])
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["needs", "host", "change"] in lines
    assert f"alters the results least: engine.offload=cpu, with {gib(host)} of host memory a rank" in shown
    within = next(each for each in found if not each.offloads and each.needed <= offloaded.needed)
    assert f"of those that fit without offload: {' '.join(within.overrides)}" in shown
