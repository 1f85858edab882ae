from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ofmu.engine.build import resolve_device
from ofmu.engine.config import EngineConfig

FLAGS = (torch.backends.cuda.matmul, torch.backends.cudnn)


def test_one_process_runs_on_pytorch_unless_masters_are_moved_to_the_host() -> None:
    assert EngineConfig().backend_on(1) == "torch"
    assert EngineConfig(precision="bf16").backend_on(1) == "torch"
    assert EngineConfig(offload="cpu").backend_on(1) == "deepspeed"
    assert EngineConfig(precision="bf16").backend_on(2) == "deepspeed"
    assert EngineConfig(backend="deepspeed").backend_on(1) == "deepspeed"


@pytest.fixture
def _tf32_on() -> Iterator[None]:
    before = [flags.allow_tf32 for flags in FLAGS]
    for flags in FLAGS:
        flags.allow_tf32 = True
    yield
    for flags, value in zip(FLAGS, before, strict=True):
        flags.allow_tf32 = value


@pytest.mark.usefixtures("_tf32_on")
def test_whoever_asks_for_the_device_computes_without_tf32() -> None:
    # The scores of a reference are computed before any engine is built, and must not depend on whether one was.
    assert resolve_device(EngineConfig(device="cpu")) == torch.device("cpu")
    assert [flags.allow_tf32 for flags in FLAGS] == [False, False]
