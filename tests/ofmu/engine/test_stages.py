"""The same run at every ZeRO stage, on one process and two, checkpoints carried from one to the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from method_specs import ofmu_trajectory
from ofmu.engine.config import EngineConfig
from ofmu.testing import RunOutcome, RunSpec, run, run_on_ranks, run_script_on_ranks

CHUNK_PROBE = Path(__file__).resolve().parents[2] / "helpers" / "chunk_probe.py"
COMPARED = ("forget_loss", "retain_loss", "similarity", "phi_norm")
EVALUATIONS = 10 * (3 * 6 + 18) + (4 + 12)
"""Of ten rounds, and of the checks of the differences at the first inner and at the first outer step."""

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(1800)]

Records = list[dict[str, Any]]
Leg = tuple[int, int, int | None]
"""Number of ranks, ZeRO stage, and number of rounds until the next leg. None: the rounds that remain."""


def on_cpu(stage: int, **settings: Any) -> EngineConfig:
    return EngineConfig(backend="deepspeed", device="cpu", zero_stage=stage, **settings)


WHOLE = ofmu_trajectory()
EXACT = ofmu_trajectory(derivative="exact", outer_steps=3)
ENGINES = {
    "0": on_cpu(0),
    "1": on_cpu(1),
    "2": on_cpu(2),
    "3": on_cpu(3),
    "2-cpu-1": on_cpu(2, offload="cpu", micro_batch_size=1),
    "3-cpu-True": on_cpu(3, offload="cpu", gradient_checkpointing=True),
}
RELAYS: dict[str, list[Leg]] = {
    "stage 3 on 2 ranks, stage 2 on 1": [(2, 3, 4), (1, 2, None)],
    "stage 2 on 1 rank, stage 3 on 2": [(1, 2, 4), (2, 3, None)],
    "stage 1 on 2 ranks, stage 0 on 2": [(2, 1, 4), (2, 0, None)],
    "a rank leaves and comes back at stage 2": [(2, 2, 3), (1, 2, 3), (2, 2, None)],
    "a rank leaves and comes back at stage 3": [(2, 3, 3), (1, 3, 3), (2, 3, None)],
}


class Plan:
    """Runs on one and two ranks. Process groups start one after the other, and a run may need an earlier group's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._groups: list[tuple[int, dict[str, RunSpec]]] = [(2, {}), (1, {}), (2, {})]

    def add(self, name: str, spec: RunSpec, ranks: int, after: int = 0) -> int:
        """Add a run to the first group of that many ranks from ``after`` on. Return the group's position."""
        place = next(at for at, group in enumerate(self._groups) if at >= after and group[0] == ranks)
        self._groups[place][1][name] = spec
        return place

    def add_relay(self, name: str, legs: Sequence[Leg]) -> None:
        """Add runs that take over from each other, each from the checkpoint of the run before."""
        place, checkpoint = 0, None
        for number, (ranks, stage, rounds) in enumerate(legs):
            spec = WHOLE.changed(engine=on_cpu(stage), stop_after=rounds, resume_from=checkpoint)
            if rounds is not None:
                checkpoint = self._folder / f"{name}, {number}"
                checkpoint.mkdir()
                spec = spec.changed(save_to=checkpoint)
            place = self.add(f"{name}, {number}", spec, ranks, place)

    def outcomes(self) -> dict[str, RunOutcome]:
        """Execute all runs."""
        found: dict[str, RunOutcome] = {}
        for ranks, specs in self._groups:
            found.update(zip(specs, run_on_ranks(list(specs.values()), ranks, timeout=600), strict=True))
        return found


@pytest.fixture(scope="module")
def alone() -> RunOutcome:
    """The run to compare with: one process, no DeepSpeed."""
    return run(WHOLE)


@pytest.fixture(scope="module")
def exact_alone() -> RunOutcome:
    return run(EXACT)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunOutcome]:
    """All runs of this file, in three process groups: the imports of a group take longer than most of the runs."""
    plan = Plan(tmp_path_factory.mktemp("stages"))
    for name, engine in ENGINES.items():
        plan.add(name, WHOLE.with_engine(engine), 2)
    plan.add("one rank", WHOLE.with_engine(on_cpu(3)), 1)
    plan.add("exact", EXACT.with_engine(on_cpu(2)), 2)
    plan.add("bf16", EXACT.with_engine(on_cpu(2, precision="bf16")), 2)
    for name, legs in RELAYS.items():
        plan.add_relay(name, legs)
    return plan.outcomes()


def assert_same_trajectory(found: Records, expected: Records, tolerance: float = 1e-3) -> None:
    assert len(found) == len(expected)
    for record, wanted in zip(found, expected, strict=True):
        for name in COMPARED:
            assert record[name] == pytest.approx(wanted[name], rel=tolerance), (wanted["outer_step"], name)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_follow_the_single_process(engine: str, alone: RunOutcome, on_ranks: dict[str, RunOutcome]) -> None:
    found = on_ranks[engine]
    assert_same_trajectory(found.records, alone.records)
    assert found.gradient_evaluations == alone.gradient_evaluations == EVALUATIONS
    assert found.tokens == alone.tokens
    assert found.parameter_norm == pytest.approx(alone.parameter_norm, rel=1e-5)


def test_one_rank_under_deepspeed_is_the_single_process(alone: RunOutcome, on_ranks: dict[str, RunOutcome]) -> None:
    assert_same_trajectory(on_ranks["one rank"].records, alone.records)


def test_exact_derivatives_agree_on_two_ranks(exact_alone: RunOutcome, on_ranks: dict[str, RunOutcome]) -> None:
    assert_same_trajectory(on_ranks["exact"].records, exact_alone.records)


def test_bf16_in_one_process_is_near_bf16_on_two_ranks(on_ranks: dict[str, RunOutcome]) -> None:
    alone = run(EXACT.with_engine(EngineConfig(backend="torch", device="cpu", precision="bf16")))
    assert {record["outer_step"] for record in alone.records} == {1, 2, 3}
    for record, wanted in zip(alone.records, on_ranks["bf16"].records, strict=True):
        for name in ("forget_loss", "retain_loss", "phi_norm"):
            assert record[name] == pytest.approx(wanted[name], rel=0.05)


def test_bf16_with_fp32_masters_stays_near_fp32(exact_alone: RunOutcome, on_ranks: dict[str, RunOutcome]) -> None:
    """bf16 has 8 bits of mantissa: a few per cent of drift over three rounds is its nature, more would be a fault."""
    for record, wanted in zip(on_ranks["bf16"].records, exact_alone.records, strict=True):
        for name in ("forget_loss", "retain_loss", "phi_norm"):
            assert record[name] == pytest.approx(wanted[name], rel=0.1)


@pytest.mark.parametrize("relay", RELAYS)
def test_a_checkpoint_continues_on_other_ranks_and_stages(
    relay: str, alone: RunOutcome, on_ranks: dict[str, RunOutcome]
) -> None:
    """All runs of a relay together tell the story of one run."""
    legs = range(len(RELAYS[relay]))
    records = [record for number in legs for record in on_ranks[f"{relay}, {number}"].records]
    assert_same_trajectory(records, alone.records)


def test_chunks_of_logits_give_the_gradients_of_whole_ones_at_every_stage() -> None:
    run_script_on_ranks(CHUNK_PROBE, 2, json.dumps([[0, False], [1, True], [2, False], [3, False], [3, True]]))
