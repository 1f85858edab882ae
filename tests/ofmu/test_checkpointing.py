"""The checkpointer of a run without Ray: it keeps two checkpoints, and returns the newest complete one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ofmu.checkpointing import LocalCheckpointer
from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.errors import RunError
from ofmu.testing import tiny_llama

TENSORS, DESCRIPTION = "rank_00000.safetensors", "rank_00000.json"


@pytest.fixture
def engine() -> Engine:
    return build_engine(tiny_llama(), EngineConfig(backend="torch", device="cpu"), CostTracker())


def write_checkpoints(engine: Engine, directory: Path, steps: int) -> LocalCheckpointer:
    """Write one checkpoint per step. All parameters of a checkpoint, and its state, are the number of the step."""
    checkpointer = LocalCheckpointer(directory, rank=0)
    for step in range(1, steps + 1):
        vectors = {"theta": tuple(torch.full_like(part, float(step)) for part in engine.space.masters())}

        def write(path: Path, step: int = step, vectors: dict = vectors) -> None:
            save_checkpoint(path, engine.space, vectors, {"loop": {"outer_step": step}}, 0, 1)

        checkpointer.on_round_end({"outer_step": step}, write)
    return checkpointer


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def decrement_step(path: Path) -> None:
    """Flip one bit so that the JSON stays valid: 3 becomes 2."""
    flip(path, path.read_bytes().index(b'"outer_step": 3') + len('"outer_step": '))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped tensor byte": (TENSORS, lambda path: flip(path, -1)),
    "a flipped header byte": (TENSORS, lambda path: flip(path, 20)),
    "truncated tensors": (TENSORS, truncate),
    "no tensors": (TENSORS, Path.unlink),
    "empty tensors": (TENSORS, lambda path: path.write_bytes(b"")),
    "a flipped state": (DESCRIPTION, decrement_step),
    "a truncated description": (DESCRIPTION, truncate),
    "no description": (DESCRIPTION, Path.unlink),
    "another description": (DESCRIPTION, lambda path: path.write_text("[]")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_raises_and_the_one_before_is_the_latest(
    damage: str, engine: Engine, tmp_path: Path
) -> None:
    checkpointer = write_checkpoints(engine, tmp_path, 3)
    newest = tmp_path / "step_000003"
    assert checkpointer.latest_checkpoint() == newest
    file, apply_damage = DAMAGES[damage]
    apply_damage(newest / file)
    with pytest.raises(RunError, match="earlier"):
        load_checkpoint(newest, engine.space)
    previous = checkpointer.latest_checkpoint()
    assert previous == tmp_path / "step_000002"
    state, vectors = load_checkpoint(previous, engine.space)
    assert state == {"loop": {"outer_step": 2}}
    assert all(bool((part == 2).all()) for part in vectors["theta"])


def test_two_damaged_checkpoints_leave_none(engine: Engine, tmp_path: Path) -> None:
    checkpointer = write_checkpoints(engine, tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000003"]
    for step in ("step_000002", "step_000003"):
        truncate(tmp_path / step / TENSORS)
    assert checkpointer.latest_checkpoint() is None


def test_an_incomplete_checkpoint_is_ignored(engine: Engine, tmp_path: Path) -> None:
    checkpointer = write_checkpoints(engine, tmp_path, 2)
    (tmp_path / "step_000002").rename(tmp_path / ".step_000003")
    assert checkpointer.latest_checkpoint() == tmp_path / "step_000001"
    assert json.loads((tmp_path / "step_000001" / DESCRIPTION).read_text())["state"]["loop"]["outer_step"] == 1
