from __future__ import annotations

import re

import pytest
import torch

from ofmu.engine.config import EngineConfig
from ofmu.engine.device import check_device, out_of_memory
from ofmu.errors import ConfigError


def test_only_a_config_that_names_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cpu", "auto"):
        check_device(EngineConfig(device=device))
    with pytest.raises(ConfigError, match="no GPU is visible"):
        check_device(EngineConfig(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(EngineConfig(device="cuda"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
            "GPU .*room for 20.00 MiB",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "^The GPU ran out of memory: lower engine"),
        (MemoryError(), "^This machine ran out of memory: lower engine"),
    ],
)
def test_memory_that_ran_out_is_told_with_the_fix(error: BaseException, said: str) -> None:
    sentence = out_of_memory(error)
    assert sentence is not None
    assert re.search(said, sentence)


def test_torch_on_the_cpu_runs_out_of_memory_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert "This machine ran out of memory (no room for 4503599627370496 bytes)" in str(out_of_memory(caught.value))


def test_another_error_is_none_of_memory() -> None:
    assert out_of_memory(RuntimeError("a bug")) is None
