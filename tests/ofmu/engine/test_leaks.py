"""A closed engine leaves nothing behind: many trials run one after the other in one warm process."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trajectory import METHOD, rows, tiny_llama

from ofmu.bilevel import Bilevel
from ofmu.config import EngineConfig
from ofmu.engine import build_engine
from ofmu.ledger import Ledger
from ofmu.losses import AnswerLoss
from ofmu.methods.ofmu import OfmuConfig


def run_once(stage: int) -> list[weakref.ref[object]]:
    model = tiny_llama()
    engine = build_engine(model, EngineConfig(zero_stage=stage, device="cpu"), Ledger())
    loss = AnswerLoss(pad_id=0)
    method = OfmuConfig(**(METHOD | {"outer_steps": 1, "inner_steps": 1}))
    list(Bilevel(engine, loss, loss, rows(12, 1), rows(30, 2), method, seed=5).rounds())
    kept = [weakref.ref(item) for item in (model, engine, engine._engine, engine.space)]
    engine.close()
    return kept


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_closed_engine_is_freed_with_its_model_and_files(stage: int) -> None:
    run_once(stage)
    gc.collect()
    files = psutil.Process().num_fds()
    kept = [reference for _ in range(3) for reference in run_once(stage)]
    gc.collect()
    assert [reference() for reference in kept] == [None] * len(kept)
    assert psutil.Process().num_fds() == files
