"""The same run at every ZeRO stage, on one process and two, checkpoints carried from one to the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trajectory
from multirank import run_ranks

SCRIPT = Path(trajectory.__file__)
COMPARED = ("forget_loss", "retain_loss", "similarity", "phi_norm")
EVALUATIONS = 10 * (3 * 6 + 18)

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The budget_reference: one process, no DeepSpeed."""
    return trajectory.run({"backend": "torch"})


def on_ranks(folder: Path, world_size: int, **settings: Any) -> dict[str, Any]:
    outcome = folder / "outcome.json"
    run_ranks(SCRIPT, world_size, str(outcome), json.dumps(settings))
    return json.loads(outcome.read_text())


def assert_same_trajectory(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-3) -> None:
    assert len(found["records"]) == len(expected["records"])
    for record, wanted in zip(found["records"], expected["records"], strict=True):
        for name in COMPARED:
            assert record[name] == pytest.approx(wanted[name], rel=tolerance), (wanted["outer_step"], name)


CASES = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 2, "offload": "cpu", "micro_batch_size": 1},
    {"zero_stage": 3, "offload": "cpu", "gradient_checkpointing": True},
]


@pytest.mark.parametrize("engine", CASES, ids=lambda case: "-".join(f"{v}" for v in case.values()))
def test_two_ranks_follow_the_single_process(engine: dict[str, Any], alone: dict[str, Any], tmp_path: Path) -> None:
    found = on_ranks(tmp_path, 2, engine_settings=engine)
    assert_same_trajectory(found, alone)
    assert found["gradient_evaluations"] == alone["gradient_evaluations"] == EVALUATIONS
    assert found["tokens"] == alone["tokens"]
    assert found["parameter_norm"] == pytest.approx(alone["parameter_norm"], rel=1e-5)


def test_one_rank_under_deepspeed_is_the_single_process(alone: dict[str, Any], tmp_path: Path) -> None:
    assert_same_trajectory(on_ranks(tmp_path, 1, engine_settings={"zero_stage": 3}), alone)


def test_exact_derivatives_agree_on_two_ranks(tmp_path: Path) -> None:
    method = {"derivative": "exact", "outer_steps": 3}
    expected = trajectory.run({"backend": "torch"}, method)
    found = on_ranks(tmp_path, 2, engine_settings={"zero_stage": 2}, method_settings=method)
    assert_same_trajectory(found, expected)


def test_bf16_with_fp32_masters_stays_near_fp32(tmp_path: Path) -> None:
    """bf16 has 8 bits of mantissa: a few per cent of drift over three rounds is its nature, more would be a fault."""
    method = {"derivative": "exact", "outer_steps": 3}
    expected = trajectory.run({"backend": "torch"}, method)
    engine = {"zero_stage": 2, "precision": "bf16"}
    found = on_ranks(tmp_path, 2, engine_settings=engine, method_settings=method)
    for record, wanted in zip(found["records"], expected["records"], strict=True):
        for name in ("forget_loss", "retain_loss", "phi_norm"):
            assert record[name] == pytest.approx(wanted[name], rel=0.1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, {"zero_stage": 3}), (1, {"zero_stage": 2})),
        ((1, {"zero_stage": 2}), (2, {"zero_stage": 3})),
        ((2, {"zero_stage": 1}), (2, {"zero_stage": 0})),
    ],
)
def test_a_checkpoint_continues_on_other_ranks_and_stages(
    first: tuple[int, dict[str, Any]], second: tuple[int, dict[str, Any]], alone: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    begun = on_ranks(tmp_path, first[0], engine_settings=first[1], stop_after=4, save_to=str(checkpoint))
    ended = on_ranks(tmp_path, second[0], engine_settings=second[1], resume_from=str(checkpoint))
    joined = {"records": begun["records"] + ended["records"]}
    assert_same_trajectory(joined, alone)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_rank_may_leave_and_come_back(stage: int, alone: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks, then one, then two again, each from the checkpoint of the others, tell one story."""
    records: list[dict[str, Any]] = []
    checkpoint = None
    for world_size, stop_after in ((2, 3), (1, 6), (2, None)):
        settings: dict[str, Any] = {"engine_settings": {"zero_stage": stage}, "stop_after": stop_after}
        if checkpoint is not None:
            settings["resume_from"] = str(checkpoint)
        if stop_after is not None:
            checkpoint = tmp_path / f"checkpoint_{stop_after}"
            checkpoint.mkdir()
            settings["save_to"] = str(checkpoint)
        records += on_ranks(tmp_path, world_size, **settings)["records"]
    assert_same_trajectory({"records": records}, alone)
