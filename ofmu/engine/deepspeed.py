"""The engine of several ranks, on DeepSpeed at ZeRO stages 0 to 3.

Only this file, ``whole_weights.py`` and ``ofmu/vectors/partitioned.py`` use DeepSpeed's internals (0.19.x).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ofmu.engine.base import Engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.process_group import join_process_group
from ofmu.engine.whole_weights import WholeWeights
from ofmu.vectors.base import Vector, VectorSpace
from ofmu.vectors.partitioned import Zero3Space, Zero12Space
from ofmu.vectors.whole import ReplicatedSpace

BUCKET_ELEMENTS = 20_000_000
"""Elements that ranks exchange at a time. Each rank holds one or two buffers of this length, whatever the model."""


class WeightSharder:
    """Cuts weights into one piece per rank, as ZeRO-3 stores them, before there is an engine.

    A model that is loaded weight by weight through this object never stands whole in the memory of a rank. The engine
    keeps the pieces as they are. All ranks must hand over the same weights in the same order.
    """

    def __init__(self, config: EngineConfig, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        join_process_group(device)
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        # A config would make DeepSpeed replace torch's linear function, which only the engine can undo.
        self._zero = deepspeed.zero.Init(dtype=self._dtype, mem_efficient_linear=False)

    @property
    def share(self) -> float:
        """The part of the model that the ranks of this machine hold."""
        ranks = dist.get_world_size()
        return int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) / ranks

    def __call__(self, parameter: nn.Parameter) -> None:
        """Keep this rank's piece of a weight that every rank has whole, in the engine's precision; collective."""
        parameter.data = parameter.data.to(self._dtype)
        self._zero._convert_to_zero_parameters([parameter])


class DeepSpeedEngine(Engine):
    """Shards parameters and gradients. Methods update the shards through the vector space.

    DeepSpeed needs an optimizer, but this optimizer never steps, for two reasons. An inner ascent must not change the
    moments of the outer optimizer. And all layouts must share one optimizer code, so that the ZeRO stages agree.
    """

    def __init__(self, model: nn.Module, config: EngineConfig, tracker: CostTracker, device: torch.device) -> None:
        super().__init__(config.micro_batch_size, tracker)
        deepspeed = _import_deepspeed(device)
        self._owns_process_group = join_process_group(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.zero_stage = config.stage
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            _finish_sharding(model, config)
        # Only a model without DeepSpeed's hooks can be copied.
        self._whole_weights = WholeWeights(model) if self.zero_stage == 3 else None
        self._in_product = False
        self._product: tuple[Vector, float] | None = None
        """The vector and the factor to which the pending product is added."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        with _without_gathering(trainable):
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
        if self._whole_weights is not None and self._product is not None:
            scalar.backward()  # type: ignore[no-untyped-call]
            self._whole_weights.add_gradient(*self._product)
            return
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(scalar)

    @contextmanager
    def _whole_model(self) -> Iterator[nn.Module]:
        if self._whole_weights is None:
            yield self.model
            return
        with self._whole_weights.gathered(self.model, self.space) as model:
            self._in_product = True
            try:
                yield model
            finally:
                self._in_product = False

    def _collect(
        self, passes: Callable[[], float], into: Vector | None, scale: float, *, first_order: bool
    ) -> tuple[float, Vector]:
        if not self._in_product:
            return super()._collect(passes, into, scale, first_order=first_order)
        target = self.space.gradient_zeros() if into is None else into
        self._product = target, scale
        try:
            value = passes()
        finally:
            self._product = None
        # The twin adds whole gradients, past the space.
        self.space.clear_frozen(target)
        return value, target

    def close(self) -> None:
        """Free DeepSpeed's buffers and hooks. Destroy the process group if this engine made the group."""
        self._engine.destroy()
        if self.zero_stage == 3:
            _release_module(self.model)
            # ZeRO-3 replaces this function for the whole process, by one that has no forward mode.
            torch.nn.functional.linear = torch._C._nn.linear
        if self._owns_process_group:
            # Ray Train's local mode would destroy the group without DeepSpeed, which would keep handles to the group.
            import deepspeed.comm

            deepspeed.comm.destroy_process_group()


def _finish_sharding(model: nn.Module, config: EngineConfig) -> None:
    """Do what DeepSpeed does only for a model that no :class:`WeightSharder` has cut."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    torch.nn.functional.linear = zero3_linear_wrap
    if config.precision == "bf16":
        # Adapters, which are made after the weights were cut.
        for parameter in model.parameters():
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(torch.bfloat16)


@contextmanager
def _without_gathering(parameters: list[Any]) -> Iterator[None]:
    """Give DeepSpeed an empty tensor of a weight's shape where it would gather the weight to attach a hook to it.

    Otherwise every weight would travel to all ranks, and the largest would stand whole beside their pieces, twice with
    Gloo. Only for weights that a :class:`WeightSharder` has cut; DeepSpeed itself cuts the others after this step.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    gathering = {parameter: parameter.all_gather for parameter in parameters if hasattr(parameter, "ds_id")}

    def stand_in(parameter: Any) -> Callable[..., Any]:
        def all_gather(param_list: Any = None, *arguments: Any, **settings: Any) -> Any:
            if param_list is not None:
                return gathering[parameter](param_list, *arguments, **settings)
            parameter.data = parameter.data.new_empty(()).expand(parameter.ds_shape)
            parameter.ds_status = ZeroParamStatus.AVAILABLE
            return None

        return all_gather

    for parameter in gathering:
        parameter.all_gather = stand_in(parameter)
    try:
        yield
    finally:
        for parameter, gather in gathering.items():
            parameter.all_gather = gather


def _release_module(module: nn.Module) -> None:
    """Remove the module of a closed stage-3 engine from DeepSpeed 0.19's globals.

    The globals would keep the module in memory. They are a list of modules whose forward pass runs, and the cache of a
    method, keyed by coordinator and module.
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
    """Return DeepSpeed's config.

    Gradient accumulation is always 1, since :class:`ofmu.engine.base.Engine` sums the micro-batches. Round-robin
    gradients are off, since they break the map from partitions to parameters at stages 1 and 2.
    """
    zero: dict[str, Any] = {
        "stage": config.stage,
        "round_robin_gradients": False,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if config.stage == 3:
        # A module's parameters are freed as soon as the module has run. DeepSpeed's defaults keep whole small models.
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_max_live_parameters": BUCKET_ELEMENTS,
            "stage3_max_reuse_distance": 0,
        }
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
        if config.stage >= 2:
            # Without this type, gradients would be rounded to bf16 between micro-batches. Stage 1 has no such type.
            result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, and each call would print a warning.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    import deepspeed
    from deepspeed.accelerator import get_accelerator, real_accelerator
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if get_accelerator().device_name() != device.type:
        # Transformers imports DeepSpeed when it saves a model. DeepSpeed then takes a visible GPU, also for a run on
        # the CPU.
        real_accelerator.set_accelerator(_accelerator(device.type))
    if device.type == "cpu":
        # The just-in-time build of this op takes half a minute and needs a compiler. Gloo gives the same numbers.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _accelerator(device_type: str) -> Any:
    if device_type == "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        return CPU_Accelerator()
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    return CUDA_Accelerator()


def _vector_space(model: nn.Module, optimizer: Any, config: EngineConfig) -> VectorSpace:
    if config.stage == 0:
        return ReplicatedSpace(model)
    layout = Zero3Space if config.stage == 3 else Zero12Space
    return layout(optimizer, model, offloaded=config.offload == "cpu")
