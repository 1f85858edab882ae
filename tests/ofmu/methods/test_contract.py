"""What every registered method must do: the same run on any ranks and stage, a whole checkpoint, an honest entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import method_run
from method_run import CASES, LANGUAGE
from multirank import run_ranks
from ofmu.errors import ConfigError
from ofmu.methods import BUILT_IN
from ofmu.methods.registry import method_class
from ofmu.run_config import UnlearnConfig

SCRIPT = Path(method_run.__file__)
ALONE = {"backend": "torch"}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """The budget_reference: one process, no DeepSpeed."""
    return {name: method_run.run(name, ALONE) for name in CASES}


@pytest.fixture(scope="module", params=[0, 2, 3], ids=lambda stage: f"stage{stage}")
def on_two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outcome = tmp_path_factory.mktemp("methods") / "outcome.json"
    run_ranks(SCRIPT, 2, str(outcome), json.dumps({"zero_stage": request.param}), ",".join(CASES), timeout=450)
    found: dict[str, Any] = json.loads(outcome.read_text())
    return found


def assert_same_run(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    assert len(found["records"]) == len(wanted["records"])
    for record, expected in zip(found["records"], wanted["records"], strict=True):
        for key, value in expected.items():
            assert record[key] == (value if value is None else pytest.approx(value, rel=tolerance, abs=1e-7)), key
    for key, value in wanted["parameters"].items():
        start = torch.tensor(wanted["start"][key], dtype=torch.float64)
        moved = torch.tensor(value, dtype=torch.float64) - start
        apart = torch.tensor(found["parameters"][key], dtype=torch.float64) - start - moved
        assert apart.norm() <= 0.02 * moved.norm() + 1e-7, key


START = method_run.sampled(dict(method_run.tiny_llama().named_parameters()))


@pytest.mark.ranks
@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_at_every_stage_follow_the_single_process(
    name: str, alone: dict[str, Any], on_two_ranks: dict[str, Any]
) -> None:
    found, wanted = on_two_ranks[name], alone[name]
    assert_same_run(found, wanted, 1e-3)
    for cost in ("gradient_evaluations", "forward_evaluations", "tokens"):
        assert found[cost] == wanted[cost]


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_continues_as_if_nothing_had_happened(name: str, alone: dict[str, Any], tmp_path: Path) -> None:
    begun = method_run.run(name, ALONE, stop_after=1, save_to=tmp_path)
    ended = method_run.run(name, ALONE, resume_from=tmp_path)
    assert begun["records"] + ended["records"] == alone[name]["records"]
    assert ended["parameters"] == alone[name]["parameters"]


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str, alone: dict[str, Any]) -> None:
    assert_same_run(method_run.run(name, ALONE | {"micro_batch_size": 1}), alone[name], 1e-3)


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_untouched_setting_leaves_the_target_as_it_is(name: str) -> None:
    found = method_run.run(name, ALONE, method_settings=dict(method_class(name).no_op_config))
    assert found["records"] == []
    assert found["parameters"] == START


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
