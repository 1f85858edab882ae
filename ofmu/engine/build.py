"""Choose the device of this process, and build the engine that a config names."""

from __future__ import annotations

import torch
from torch import nn

from ofmu.engine.base import Engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.deepspeed import DeepSpeedEngine, WeightSharder
from ofmu.engine.device import check_device
from ofmu.engine.process_group import number_of_ranks
from ofmu.engine.torch import TorchEngine
from ofmu.io.ranks import launched_ranks
from ofmu.models.randomness import disable_randomness_in_modules
from ofmu.vectors.mixed import round_frozen


def resolve_device(config: EngineConfig) -> torch.device:
    """Return the device of this process. On a machine with several GPUs, the local rank chooses the GPU.

    Whatever runs on the device runs with TF32 off from here on: preparation, passes and scores alike.

    Raises:
        ConfigError: the config names a GPU, and no GPU is visible.
    """
    # A finite difference is a small part of two gradients. TF32 drops the digits that hold this part. The scores of a
    # target and of a run would differ if TF32 were switched off for only one of them.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    check_device(config)
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = launched_ranks().local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def build_engine(model: nn.Module, config: EngineConfig, tracker: CostTracker) -> Engine:
    """Move ``model`` to the device and return the engine that the config names.

    The function changes the model and torch's settings: randomness is switched off, and so is TF32.

    Raises:
        ConfigError: the config names a GPU, and no GPU is visible, or a setting is for one process only.
    """
    ranks = number_of_ranks()
    config.check_ranks(ranks)
    device = resolve_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    disable_randomness_in_modules(model)
    if config.precision == "bf16":
        # In fp32, a frozen base would take twice its memory on the device for a moment.
        round_frozen(model)
    model.to(device).train()
    if config.recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    if config.backend_on(ranks) == "torch":
        gradients = torch.bfloat16 if config.gradient_precision == "bf16" else torch.float32
        rounded = config.precision == "bf16"
        return TorchEngine(model, tracker, config.micro_batch_size, rounded=rounded, gradients=gradients)
    return DeepSpeedEngine(model, config, tracker, device)


def weight_sharder(config: EngineConfig) -> WeightSharder | None:
    """Return what cuts each weight into one piece per rank while a model is loaded; collective.

    None: the engine keeps whole weights on every rank, or there is one rank.

    Raises:
        ConfigError: the config names a GPU, and no GPU is visible, or a setting is for one process only.
        ClusterError: a rank has not come.
    """
    ranks = number_of_ranks()
    config.check_ranks(ranks)
    if config.stage < 3 or ranks == 1:
        return None
    return WeightSharder(config, resolve_device(config))
