from __future__ import annotations

import pytest
import torch

from ofmu.engine.config import EngineConfig
from ofmu.engine.device import check_device
from ofmu.errors import ConfigError


def test_only_a_config_that_names_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cpu", "auto"):
        check_device(EngineConfig(device=device))
    with pytest.raises(ConfigError, match="no GPU is visible"):
        check_device(EngineConfig(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(EngineConfig(device="cuda"))
