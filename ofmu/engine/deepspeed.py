"""DeepSpeed's engine at ZeRO stages 0 to 3 behind ours; with ``ofmu/vectors/partitioned.py`` the only file that
touches DeepSpeed's insides."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ofmu.engine.base import Engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.process_group import join_process_group
from ofmu.vectors.base import VectorSpace
from ofmu.vectors.whole import ReplicatedSpace


class DeepSpeedEngine(Engine):
    """Shards parameters and gradients; the steps themselves are taken on the shards, through the vector space.

    DeepSpeed's own optimizer is there in name only and never steps: an inner ascent must not touch the outer
    optimizer's moments, and the same optimizer code on every layout is what makes stages agree.
    """

    def __init__(self, model: nn.Module, config: EngineConfig, tracker: CostTracker, device: torch.device) -> None:
        super().__init__(config.micro_batch_size, tracker)
        deepspeed = _import_deepspeed(device)
        self._joined_alone = join_process_group(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.zero_stage = config.zero_stage
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._engine, optimizer, _, _ = deepspeed.initialize(
            model=model,
            model_parameters=trainable,
            optimizer=torch.optim.SGD(trainable, lr=0.0),
            config=deepspeed_config(config, self.world_size),
            dist_init_required=False,
        )
        self.model = self._engine.module
        self.device = device
        self.space = _vector_space(self.model, optimizer, config)

    def _forward(self) -> Callable[..., Any]:
        return self._engine  # type: ignore[no-any-return]

    def _backward(self, scalar: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(scalar)

    def close(self) -> None:
        """Free DeepSpeed's buffers and hooks, and leave the process group if this engine made it."""
        self._engine.destroy()
        if self.zero_stage == 3:
            _forget_module(self.model)
        if self._joined_alone:
            # Ray Train's local mode would destroy the group behind DeepSpeed's back, which keeps handles to it
            import deepspeed.comm

            deepspeed.comm.destroy_process_group()


def _forget_module(module: nn.Module) -> None:
    """Take a closed stage-3 engine out of DeepSpeed 0.19's globals, which would keep all of it for ever.

    They are a list of modules in flight and a method's cache, keyed by coordinator and module.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [entry for entry in stack if entry is not module]
    cached = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in cached.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def deepspeed_config(config: EngineConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's own config.

    Accumulation is always 1, since micro-batches are summed by hand; round-robin gradients stay off, since they
    break the map from partitions to parameters at stages 1 and 2.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage, "round_robin_gradients": False}
    if config.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if config.precision == "bf16":
        result["bf16"] = {"enabled": True}
        if config.zero_stage >= 2:
            # without it gradients would be rounded to bf16 between micro-batches; stage 1 refuses the pair
            result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, and each call would print so
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if device.type == "cpu":
        # its just-in-time build costs half a minute and needs a compiler; gloo gives the same numbers
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _vector_space(model: nn.Module, optimizer: Any, config: EngineConfig) -> VectorSpace:
    from ofmu.vectors.partitioned import Zero3Space, Zero12Space

    if config.zero_stage == 0:
        return ReplicatedSpace(model)
    layout = Zero3Space if config.zero_stage == 3 else Zero12Space
    return layout(optimizer, model, offloaded=config.offload == "cpu")
