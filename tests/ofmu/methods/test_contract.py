"""What every registered method must do: the same run on any ranks and stage, a whole checkpoint, an honest entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from method_specs import contract_specs, short_spec
from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError
from ofmu.methods import BUILT_IN
from ofmu.methods.registry import method_class
from ofmu.run_config import UnlearnConfig
from ofmu.testing import (
    RunOutcome,
    assert_same_run,
    check_checkpoint,
    check_micro_batches,
    check_no_op,
    check_same_cost,
    check_weights_move,
    run,
    run_on_ranks,
    tiny_classifier,
    tiny_llama,
)

LANGUAGE = {name: short_spec(name) for name in BUILT_IN if "language" in method_class(name).tasks}
VISION = {f"vision-{name}": short_spec(name, "vision") for name in BUILT_IN if "vision" in method_class(name).tasks}
OWN = LANGUAGE | VISION
CASES = OWN | contract_specs()

GROUPS = ((0, 3), (1, 2))
"""ZeRO stages that share one process group: the imports of a group take longer than the runs of a stage."""
LONG = GROUPS[1]
PAIRS = [(name, stage) for stages in GROUPS for stage in stages for name in CASES]


@pytest.fixture(scope="module")
def alone() -> dict[str, RunOutcome]:
    """The runs to compare with: one process, no DeepSpeed."""
    return {name: run(spec) for name, spec in CASES.items()}


@pytest.fixture(scope="module")
def on_two_ranks() -> Callable[[str, int], RunOutcome]:
    """Return a function from a case and a ZeRO stage to the run on two ranks. Each run is made once."""
    made: dict[tuple[str, int], RunOutcome] = {}

    def outcome(case: str, stage: int) -> RunOutcome:
        if (case, stage) not in made:
            (stages,) = (group for group in GROUPS if stage in group)
            keys = [(name, each) for name, each in PAIRS if each in stages]
            specs = [CASES[name].with_engine(EngineConfig(zero_stage=each, device="cpu")) for name, each in keys]
            made.update(zip(keys, run_on_ranks(specs, timeout=900), strict=True))
        return made[case, stage]

    return outcome


def equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.ranks
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        pytest.param(name, stage, marks=[pytest.mark.long] if stage in LONG else [], id=f"stage{stage}-{name}")
        for name, stage in PAIRS
    ],
)
def test_two_ranks_at_every_stage_follow_the_single_process(
    name: str, stage: int, alone: dict[str, RunOutcome], on_two_ranks: Callable[[str, int], RunOutcome]
) -> None:
    found, wanted = on_two_ranks(name, stage), alone[name]
    assert wanted.records
    assert_same_run(found, wanted)
    check_same_cost(found, wanted)
    assert equal(found.buffers, wanted.buffers)


@pytest.mark.parametrize("name", CASES)
def test_a_method_changes_the_weights_and_keeps_the_statistics(name: str, alone: dict[str, RunOutcome]) -> None:
    check_weights_move(alone[name])
    if CASES[name].kind == "vision":
        assert equal(alone[name].buffers, dict(tiny_classifier().named_buffers()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_continues_as_if_nothing_had_happened(name: str, alone: dict[str, RunOutcome]) -> None:
    check_checkpoint(CASES[name], alone[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str, alone: dict[str, RunOutcome]) -> None:
    check_micro_batches(CASES[name], alone[name])


@pytest.mark.parametrize("name", OWN)
def test_the_untouched_setting_leaves_the_target_as_it_is(name: str, alone: dict[str, RunOutcome]) -> None:
    check_no_op(OWN[name])
    target = tiny_llama() if OWN[name].kind == "language" else tiny_classifier()
    assert equal(alone[name].start, dict(target.named_parameters()))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_method_states_what_it_is_and_what_is_searched_of_it(name: str) -> None:
    method = method_class(name)
    assert method.name == name
    assert method.title
    assert method.source
    assert method.__doc__
    fields = method.Config.model_fields
    assert set(method.space) <= set(fields)
    assert set(method.published) <= set(fields)
    source = "generated" if "language" in method.tasks else "cifar10"
    run = {"data": {"source": source}, "method": {"name": name, **method.published}}
    config = UnlearnConfig.model_validate(run)
    assert isinstance(config.method, method.Config)
    assert UnlearnConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="npo"):
        method_class("npoo")
