"""The plan of a run: its memory, its cost, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch

from ofmu.config.files import apply_overrides, validate
from ofmu.errors import ConfigError, OfmuError
from ofmu.models.files import has_tokenizer, has_weights
from ofmu.models.hub import config_directory
from ofmu.models.meta import MAX_PARAMETERS, exact_sizes
from ofmu.models.sizes import ModelSizes, read_config, scratch_config
from ofmu.plan.cost import Cost, preparation_cost, run_cost
from ofmu.plan.memory import PREPARATION, MemoryPlan, memory_plan
from ofmu.plan.phases import Phase
from ofmu.plan.workload import Workload, workload
from ofmu.run_config import UnlearnConfig


@dataclass(frozen=True)
class Candidate:
    """A change of the config, and the memory that a rank then needs."""

    overrides: tuple[str, ...]
    """Entries such as ``engine.micro_batch_size=1``."""
    needed: float
    """Bytes of the device."""
    host: float = 0.0
    """Bytes of host memory, if the device is a GPU."""

    @property
    def offloads(self) -> bool:
        """Whether the change moves parts of the run into host memory."""
        return _OFFLOAD in self.overrides

    def makes_needless(self, other: Candidate) -> bool:
        """Return whether a change that alters the results more, or as much, is of no use beside this one."""
        if len(self.overrides) >= len(other.overrides):
            return self.overrides == other.overrides
        return self.needed <= other.needed and self.host <= other.host


_OFFLOAD = "engine.offload=cpu"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    config: UnlearnConfig
    model: Mapping[str, Any]
    """The content of the model's ``config.json``."""
    sizes: ModelSizes
    work: Workload
    ranks: int
    on_gpu: bool
    budget: float | None
    """Bytes that a rank may use on its device. None: unknown."""
    memory: MemoryPlan
    keeps_round: bool = False
    """Whether the run may keep the weights of an earlier round."""

    @property
    def needed(self) -> float:
        """Bytes of the device that a rank needs."""
        return self.memory.needed(on_gpu=self.on_gpu)

    @property
    def fits(self) -> bool:
        """Whether a rank fits, as far as the budget is known."""
        return self.budget is None or self.needed <= self.budget

    @cached_property
    def cost(self) -> tuple[Cost, Cost] | None:
        """The least and the most that one run costs. None: the method does not say."""
        return run_cost(self.config, self.work)

    @cached_property
    def preparation(self) -> Cost:
        """What preparation costs, if nothing is in the cache."""
        return preparation_cost(self.config, self.work)

    def memory_with(self, config: UnlearnConfig) -> MemoryPlan:
        """Return what a rank needs under a config that differs in the engine, the method or the training."""
        return memory_plan(
            config,
            self.model,
            self.sizes,
            self.work,
            ranks=self.ranks,
            on_gpu=self.on_gpu,
            keeps_round=self.keeps_round,
        )

    def needed_with(self, config: UnlearnConfig) -> float:
        """Return the bytes of the device that a rank needs under a config that differs in the engine or the method."""
        return self.memory_with(config).needed(on_gpu=self.on_gpu)

    def candidates(self) -> Iterator[Candidate]:
        """Yield changes after which a rank needs less. Those that alter the run's results least come first.

        A change is left out if one before it has fewer parts and needs no more memory.
        """
        found: list[Candidate] = []
        for overrides in _changes(self.config, self.ranks, on_gpu=self.on_gpu):
            try:
                memory = self.memory_with(_changed(self.config, overrides))
            except OfmuError:
                continue  # this method or model does not have the setting
            host = max(phase.host for phase in memory.phases if phase.name != PREPARATION) if self.on_gpu else 0.0
            candidate = Candidate(overrides, memory.needed(on_gpu=self.on_gpu), host)
            if candidate.needed >= self.needed or any(each.makes_needless(candidate) for each in found):
                continue
            found.append(candidate)
            yield candidate

    def smallest_change(self) -> Candidate | None:
        """Return the first of :meth:`candidates` that fits. None: none does, or the run fits as it is."""
        if self.fits or self.budget is None:
            return None
        return next((candidate for candidate in self.candidates() if candidate.needed <= self.budget), None)

    @property
    def unprepared(self) -> Phase | None:
        """The preparation, if a rank cannot hold it and so needs the target from the cache."""
        preparation = _preparation_of(self.memory)
        if preparation is None or self.budget is None:
            return None
        return preparation if preparation.needed(on_gpu=self.on_gpu) > self.budget else None

    def preparation_change(self) -> Candidate | None:
        """Return a change with which a preparation fits that does not. None: none is known, or it fits as it is."""
        if self.unprepared is None or self.budget is None or self.config.training.optimizer == "adamw_8bit":
            return None
        overrides = ("training.optimizer=adamw_8bit",)
        preparation = _preparation_of(self.memory_with(_changed(self.config, overrides)))
        if preparation is None or preparation.needed(on_gpu=self.on_gpu) > self.budget:
            return None
        return Candidate(overrides, preparation.needed(on_gpu=self.on_gpu))


def _preparation_of(memory: MemoryPlan) -> Phase | None:
    return next((phase for phase in memory.phases if phase.name == PREPARATION), None)


def make_plan(
    config: UnlearnConfig,
    *,
    ranks: int = 1,
    on_gpu: bool | None = None,
    budget: float | None = None,
    keeps_round: bool = False,
) -> Plan:
    """Compute what a run needs. No weights are read.

    Args:
        config: the run.
        ranks: number of ranks.
        on_gpu: whether ranks run on GPUs. None: as ``engine.device`` says on this machine.
        budget: bytes that a rank may use. None: the plan compares with nothing.
        keeps_round: whether the run may keep the weights of an earlier round, as ``search.checkpoint_selection`` asks.

    Raises:
        ConfigError: the data are images, or a setting of the engine is for one process only.
        DataError: the rows cannot be loaded.
        ModelError: the model's config cannot be read.
    """
    if config.data.kind != "language":
        raise ConfigError("A plan is for language models, and these data are images: leave the plan out")
    config.engine.check_ranks(ranks)
    model, directory = _model_config(config)
    sizes = exact_sizes(model)
    # No row need be encoded for a model that is larger than any machine, and none can be without a tokenizer.
    encode = (
        directory is None or config.model.tokenizer is not None or has_weights(directory) or has_tokenizer(directory)
    )
    work = workload(config, model, directory, encode=encode and sizes.parameters <= MAX_PARAMETERS)
    gpu = runs_on_gpu(config) if on_gpu is None else on_gpu
    return Plan(
        config=config,
        model=model,
        sizes=sizes,
        work=work,
        ranks=ranks,
        on_gpu=gpu,
        budget=budget,
        memory=memory_plan(config, model, sizes, work, ranks=ranks, on_gpu=gpu, keeps_round=keeps_round),
        keeps_round=keeps_round,
    )


def runs_on_gpu(config: UnlearnConfig) -> bool:
    """Return whether ranks on this machine run on GPUs."""
    return config.engine.device == "cuda" or (config.engine.device == "auto" and torch.cuda.is_available())


def _model_config(config: UnlearnConfig) -> tuple[dict[str, Any], Path | None]:
    """Return the content of ``config.json``, and the directory of the model if there is one."""
    if config.model.path is None:
        positions = config.data.max_length + config.evaluation.max_new_tokens
        return scratch_config(config.model.scratch, positions), None
    directory = config_directory(config.model.path, config.model.revision)
    if directory is None:
        raise ConfigError(
            f"There is no model directory '{config.model.path}', and a plan downloads nothing: check the path, or, if "
            f"it is a hub name, download it with 'hf download {config.model.path}'"
        )
    return read_config(directory), directory


def _changes(config: UnlearnConfig, ranks: int, *, on_gpu: bool) -> Iterator[tuple[str, ...]]:
    """Yield changes: without an effect on results, with shorter types, slower, and of fewer weights, in this order.

    A change that the config has already is left out.
    """
    engine, steps = config.engine, list[str]()
    rows = min(-(-config.method.batch_size // ranks), engine.micro_batch_size or config.method.batch_size)
    micro = [f"engine.micro_batch_size={size}" for size in (4, 2, 1) if size < rows]
    for entry in micro:
        yield (entry,)
    steps += micro[-1:]
    if config.evaluation.batch_size > 4:
        yield ("evaluation.batch_size=4",)
        steps.append("evaluation.batch_size=4")
    if not engine.recomputes:
        yield ("engine.gradient_checkpointing=true",)
        steps.append("engine.gradient_checkpointing=true")
    if len(steps) > 1:
        yield tuple(steps)
    in_8_bits = _moments_in_8_bits(config)
    if in_8_bits:
        yield in_8_bits
        steps += in_8_bits
        yield tuple(steps)
    if engine.backend_on(ranks) == "deepspeed" and engine.stage < 3:
        for stage in range(max(engine.stage + 1, 2), 4) if ranks > 1 else ():
            yield (f"engine.zero_stage={stage}",)
            yield (*steps, f"engine.zero_stage={stage}")
    light = tuple(steps)
    in_bf16 = _shorter_types(config, ranks, on_gpu=on_gpu)
    if in_bf16:
        yield in_bf16
        yield (*light, *in_bf16)
    if on_gpu and engine.offload != "cpu":
        yield (_OFFLOAD,)
        yield (*light, _OFFLOAD)
        if ranks > 1 and engine.stage < 3:
            yield (*light, _OFFLOAD, "engine.zero_stage=3")
    adapter = ("model.adapter.kind=lora",) if config.model.adapter.kind == "none" else ()
    # The frozen weights are the most of a run with adapters. Its gradients are small in any type.
    frozen_in_bf16 = tuple(entry for entry in in_bf16 if not entry.startswith("engine.gradient_precision"))
    if not config.model.adapter.is_quantized:
        for change in (adapter, (*adapter, *frozen_in_bf16), (*adapter, "model.adapter.quantization=4bit")):
            if change:
                yield change
                yield (*micro[-1:], *change)
                yield (*light, *change)


def _shorter_types(config: UnlearnConfig, ranks: int, *, on_gpu: bool) -> tuple[str, ...]:
    """Return the changes that put weights and gradients into bf16. Few CPUs compute in bf16 as fast as in fp32."""
    engine, changes = config.engine, list[str]()
    if engine.precision == "fp32":
        if not on_gpu:
            return ()
        changes += ["engine.precision=bf16"]
        try:
            _changed(config, tuple(changes))
        except OfmuError:
            changes += [f"method.{name}={value}" for name, value in config.method.defaults_at("bf16").items()]
    if engine.gradient_precision == "fp32" and engine.backend_on(ranks) == "torch":
        changes += ["engine.gradient_precision=bf16"]
    return tuple(changes)


def _moments_in_8_bits(config: UnlearnConfig) -> tuple[str, ...]:
    """Return the changes that put all moments of the method into 8 bits."""
    names = ("update", "inner_update", "outer_update")
    fields = type(config.method).model_fields
    return tuple(
        f"method.{name}=adamw_8bit"
        for name in names
        if getattr(config.method, name, None) == "adamw" and "adamw_8bit" in get_args(fields[name].annotation)
    )


def _changed(config: UnlearnConfig, overrides: tuple[str, ...]) -> UnlearnConfig:
    mapping = apply_overrides(config.model_dump(mode="json"), overrides)
    return validate(UnlearnConfig, mapping)
