"""Every method for images: equal runs on all ranks and stages, complete checkpoints, frozen statistics."""

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
SINGLE_PROCESS = {"backend": "torch"}


@pytest.fixture(scope="module")
def single_process() -> dict[str, dict[str, Any]]:
    """The runs to compare with: one process, no DeepSpeed."""
    return {name: contract_run.run(name, SINGLE_PROCESS) for name in CASES}


@pytest.fixture(scope="module", params=[0, 2, 3], ids=lambda stage: f"stage{stage}")
def on_two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outcome = tmp_path_factory.mktemp("vision") / "outcome.json"
    run_ranks(SCRIPT, 2, str(outcome), json.dumps({"zero_stage": request.param}), ",".join(CASES))
    runs: dict[str, Any] = json.loads(outcome.read_text())
    return runs


def assert_same_run(run: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert len(run["records"]) == len(expected["records"]) > 0
    for record, expected_record in zip(run["records"], expected["records"], strict=True):
        for key, value in expected_record.items():
            assert record[key] == (value if value is None else pytest.approx(value, rel=tolerance, abs=1e-7)), key
    for key, value in expected["parameters"].items():
        start = torch.tensor(expected["start"][key], dtype=torch.float64)
        change = torch.tensor(value, dtype=torch.float64) - start
        difference = torch.tensor(run["parameters"][key], dtype=torch.float64) - start - change
        assert difference.norm() <= 0.02 * change.norm() + 1e-7, key


@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_at_every_stage_follow_the_single_process(
    name: str, single_process: dict[str, Any], on_two_ranks: dict[str, Any]
) -> None:
    run, expected = on_two_ranks[name], single_process[name]
    assert_same_run(run, expected, 1e-3)
    for cost in ("gradient_evaluations", "forward_evaluations", "tokens"):
        assert run[cost] == expected[cost]
    assert run["statistics"] == expected["statistics"]


@pytest.mark.parametrize("name", CASES)
def test_a_method_changes_the_weights_and_keeps_the_statistics(name: str, single_process: dict[str, Any]) -> None:
    assert single_process[name]["parameters"] != single_process[name]["start"]
    assert single_process[name]["statistics"] == contract_run.flat(dict(tiny_classifier().named_buffers()))


@pytest.mark.parametrize("name", CASES)
def test_a_run_from_a_checkpoint_equals_an_uninterrupted_run(
    name: str, single_process: dict[str, Any], tmp_path: Path
) -> None:
    begun = contract_run.run(name, SINGLE_PROCESS, stop_after=1, save_to=tmp_path)
    ended = contract_run.run(name, SINGLE_PROCESS, resume_from=tmp_path)
    assert begun["records"] + ended["records"] == single_process[name]["records"]
    assert ended["parameters"] == single_process[name]["parameters"]


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str, single_process: dict[str, Any]) -> None:
    assert_same_run(contract_run.run(name, SINGLE_PROCESS | {"micro_batch_size": 1}), single_process[name], 1e-3)


@pytest.mark.parametrize("name", VISION)
def test_the_no_op_config_returns_the_target(name: str) -> None:
    run = contract_run.run(name, SINGLE_PROCESS, method_settings=dict(method_class(name).no_op_config))
    assert run["records"] == []
    assert run["parameters"] == run["start"]


@pytest.mark.parametrize("name", ["salun", *MASKED])
@pytest.mark.parametrize("stage", [0, 2, 3], ids=lambda stage: f"stage{stage}")
def test_weights_outside_the_mask_do_not_change_by_a_bit(name: str, stage: int, single_process: dict[str, Any]) -> None:
    # Weight decay without a mask would change every weight.
    settings = {} if name == "ofmu-salient" else {"weight_decay": 0.1}
    run = contract_run.run(name, {"zero_stage": stage}, method_settings=settings)
    equal = changed = 0
    for key, end in run["parameters"].items():
        same = torch.tensor(end) == torch.tensor(run["start"][key])
        equal, changed = equal + int(same.sum()), changed + int((~same).sum())
    assert equal / (equal + changed) == pytest.approx(0.5, abs=0.02)
