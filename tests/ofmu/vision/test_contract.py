"""What every method for images must do: the same run on any ranks and stage, a whole checkpoint, frozen statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import contract_run
from contract_run import CASES, MASKED, VISION
from multirank import run_ranks
from ofmu.methods.registry import method_class
from tiny_images import tiny_classifier

SCRIPT = Path(contract_run.__file__)
ALONE = {"backend": "torch"}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """The yardstick: one process, no DeepSpeed."""
    return {name: contract_run.run(name, ALONE) for name in CASES}


@pytest.fixture(scope="module", params=[0, 2, 3], ids=lambda stage: f"stage{stage}")
def on_two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outcome = tmp_path_factory.mktemp("vision") / "outcome.json"
    run_ranks(SCRIPT, 2, str(outcome), json.dumps({"zero_stage": request.param}), ",".join(CASES))
    found: dict[str, Any] = json.loads(outcome.read_text())
    return found


def assert_same_run(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    assert len(found["records"]) == len(wanted["records"]) > 0
    for record, expected in zip(found["records"], wanted["records"], strict=True):
        for key, value in expected.items():
            assert record[key] == (value if value is None else pytest.approx(value, rel=tolerance, abs=1e-7)), key
    for key, value in wanted["parameters"].items():
        start = torch.tensor(wanted["start"][key], dtype=torch.float64)
        moved = torch.tensor(value, dtype=torch.float64) - start
        apart = torch.tensor(found["parameters"][key], dtype=torch.float64) - start - moved
        assert apart.norm() <= 0.02 * moved.norm() + 1e-7, key


@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_at_every_stage_follow_the_single_process(
    name: str, alone: dict[str, Any], on_two_ranks: dict[str, Any]
) -> None:
    found, wanted = on_two_ranks[name], alone[name]
    assert_same_run(found, wanted, 1e-3)
    for cost in ("gradient_evaluations", "forward_evaluations", "tokens"):
        assert found[cost] == wanted[cost]
    assert found["statistics"] == wanted["statistics"]


@pytest.mark.parametrize("name", CASES)
def test_a_method_moves_the_weights_and_leaves_the_statistics(name: str, alone: dict[str, Any]) -> None:
    assert alone[name]["parameters"] != alone[name]["start"]
    assert alone[name]["statistics"] == contract_run.flat(dict(tiny_classifier().named_buffers()))


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_continues_as_if_nothing_had_happened(name: str, alone: dict[str, Any], tmp_path: Path) -> None:
    begun = contract_run.run(name, ALONE, stop_after=1, save_to=tmp_path)
    ended = contract_run.run(name, ALONE, resume_from=tmp_path)
    assert begun["records"] + ended["records"] == alone[name]["records"]
    assert ended["parameters"] == alone[name]["parameters"]


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str, alone: dict[str, Any]) -> None:
    assert_same_run(contract_run.run(name, ALONE | {"micro_batch_size": 1}), alone[name], 1e-3)


@pytest.mark.parametrize("name", VISION)
def test_the_untouched_setting_leaves_the_target_as_it_is(name: str) -> None:
    found = contract_run.run(name, ALONE, method_settings=dict(method_class(name).no_op_config))
    assert found["records"] == []
    assert found["parameters"] == found["start"]


@pytest.mark.parametrize("name", ["salun", *MASKED])
@pytest.mark.parametrize("stage", [0, 2, 3], ids=lambda stage: f"stage{stage}")
def test_weights_outside_the_mask_stay_bit_for_bit(name: str, stage: int, alone: dict[str, Any]) -> None:
    # weight decay would move every weight, if it were let
    settings = {} if name == "ofmu-salient" else {"weight_decay": 0.1}
    found = contract_run.run(name, {"zero_stage": stage}, method_settings=settings)
    held = moved = 0
    for key, end in found["parameters"].items():
        same = torch.tensor(end) == torch.tensor(found["start"][key])
        held, moved = held + int(same.sum()), moved + int((~same).sum())
    assert held / (held + moved) == pytest.approx(0.5, abs=0.02)
