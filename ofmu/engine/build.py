"""Build the engine that a config names, and find the device of this process."""

from __future__ import annotations

import os

import torch
from torch import nn

from ofmu.engine.base import Engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import ConfigError


def resolve_device(config: EngineConfig) -> torch.device:
    """Return the device this process runs on.

    Raises:
        ConfigError: a GPU is asked for and none is visible.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("engine.device is 'cuda', but no GPU is visible: use 'auto' or 'cpu'")
    if config.device == "cpu" or not available:
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def build_engine(model: nn.Module, config: EngineConfig, tracker: CostTracker) -> Engine:
    """Move a model to its device and wrap it in the engine that the config names.

    TF32 is switched off, since finite differences live in the digits that it drops.
    """
    device = resolve_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            # finite differences and double backward need the same function at every evaluation
            module.p = 0.0
    model.to(device).train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    if config.backend == "torch":
        return TorchEngine(model, tracker, config.micro_batch_size)
    from ofmu.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, config, tracker, device)
