"""Bytes of one rank by component, for each phase of a run: load, round, evaluation, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ofmu.engine.footprint import BF16, FP32, EngineBytes, engine_bytes
from ofmu.methods.registry import method_class
from ofmu.models.config import AdapterConfig
from ofmu.models.language import attention_for
from ofmu.models.meta import MAX_PARAMETERS
from ofmu.models.quantization import QUANTIZING_COPIES
from ofmu.models.sizes import ModelSizes
from ofmu.models.weights import stored_under_other_names
from ofmu.plan.passes import PassPeaks, scoring_pass, training_pass
from ofmu.plan.phases import Component, Phase
from ofmu.plan.robustness import attacks, divergence
from ofmu.plan.workload import Workload
from ofmu.run_config import UnlearnConfig
from ofmu.vectors.held import HeldVectors
from ofmu.vectors.optimizers import moments_of

_KEPT = (("the kept round", 1), ("the kept round and the last one", 2))
PREPARATION = "preparation"
"""Name of the phase that trains the target and the retrained model."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one rank."""

    trainable: int
    """Trainable weights."""
    frozen: int
    """Frozen weights."""
    phases: tuple[Phase, ...]
    declared: bool
    """False: the method does not declare its vectors, so the plan counts none of them."""

    def peak(self, *, on_gpu: bool) -> Phase:
        """Return the phase that needs most of the device's memory. The preparation, which is cached, does not count."""
        phases = [phase for phase in self.phases if phase.name != PREPARATION]
        return max(phases, key=lambda phase: phase.needed(on_gpu=on_gpu))

    def needed(self, *, on_gpu: bool) -> float:
        """Return the bytes of the device that the whole run needs."""
        return self.peak(on_gpu=on_gpu).needed(on_gpu=on_gpu)


def memory_plan(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    *,
    ranks: int,
    on_gpu: bool,
    keeps_round: bool = False,
) -> MemoryPlan:
    """Return the memory of one rank.

    Args:
        config: the run.
        model: the content of the model's ``config.json``.
        sizes: the numbers of the model's weights.
        work: the lengths of the rows.
        ranks: number of ranks.
        on_gpu: whether the device is a GPU.
        keeps_round: whether the run may keep the weights of an earlier round: see :mod:`ofmu.kept_round`.
    """
    adapter = config.model.adapter
    adapters = sizes.adapter_parameters(adapter)
    trainable, frozen = (adapters, sizes.parameters) if adapter.kind != "none" else (sizes.parameters, 0)
    quantized = sizes.linear_parameters if adapter.is_quantized else 0
    largest = _largest_weight(sizes)
    one_by_one = not stored_under_other_names(model)
    engine = engine_bytes(
        config.engine,
        trainable,
        frozen - quantized,
        ranks,
        quantized=quantized,
        quantizing=FP32 * QUANTIZING_COPIES * sizes.largest_linear if quantized else 0.0,
        largest=largest,
        one_by_one=one_by_one,
        on_gpu=on_gpu,
    )
    held = method_class(config.method.name, config.method.module).held_vectors(config.method)
    vectors = held or HeldVectors()
    if config.method.saliency_fraction < 1:
        # the frozen weights, the mask of one byte per weight, and the masked copy of a gradient
        vectors = vectors.with_kept(1.25)
    offloaded = on_gpu and config.engine.offload == "cpu"
    standing = (
        Component("weights", engine.weights),
        Component("fp32 masters", engine.masters, offloaded),
        Component("optimizer and kept vectors", vectors.kept * engine.vector, offloaded),
    )
    buildable = sizes.parameters <= MAX_PARAMETERS
    # While rounds are scored at the end of a run, the last round is kept beside the earlier one.
    kept, both = (Component(name, float(keeps_round * count * engine.vector), True) for name, count in _KEPT)
    gradients = Component("gradients of the last round", engine.gradients, offloaded)
    after = (*standing, gradients, kept, Component("gathered weights", engine.gathered_weights))
    phases = (
        *_preparation(config, model, sizes, work, ranks, buildable=buildable, on_gpu=on_gpu),
        _load(engine, standing, on_gpu=on_gpu),
        _round(
            config,
            model,
            sizes,
            work,
            engine,
            vectors,
            (*standing, kept),
            ranks,
            buildable=buildable,
            offloaded=offloaded,
        ),
        _evaluation(config, model, sizes, work, engine, (*standing, both), buildable=buildable, offloaded=offloaded),
        _save(engine, (*standing, kept), sizes, adapter, on_gpu=on_gpu, offloaded=offloaded),
        *divergence(
            config, model, sizes, work, engine, after, _attention(config), buildable=buildable, offloaded=offloaded
        ),
        *attacks(config, model, sizes, work, after, _largest_weight(sizes), buildable=buildable),
    )
    return MemoryPlan(trainable=trainable, frozen=frozen, phases=phases, declared=held is not None)


def _preparation(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    ranks: int,
    *,
    buildable: bool,
    on_gpu: bool,
) -> tuple[Phase, ...]:
    """Return the training of the target or the retrained model in fp32: by one process, or on the ranks' engine."""
    if config.model.is_target and config.reference.source != "retrain":
        return ()
    on_engine = ranks > 1 and config.engine.backend_on(ranks) == "deepspeed"
    rows = min(config.training.batch_size, work.forget_rows + work.retain_rows)
    if on_engine:
        local = -(-rows // ranks)
        rows = min(local, config.engine.micro_batch_size or local)
    peaks = PassPeaks(0.0, 0.0)
    if buildable:
        attention: Any = "eager" if config.model.attention == "eager" else "sdpa"
        peaks = training_pass(
            model,
            sizes.layers,
            rows,
            work.longest,
            attention=attention,
            dtype=torch.float32,
            checkpointing=on_engine and config.engine.recomputes,
            adapter=AdapterConfig(),
        )
    if on_engine:
        return (_preparation_on_engine(config, model, sizes, ranks, peaks, on_gpu=on_gpu),)
    whole = float(FP32 * sizes.parameters)
    held = (
        Component("weights", whole),
        Component("optimizer", moments_of(config.training.optimizer) * whole),
        Component("gradients", whole),
    )
    temporary = Component("temporary vectors of a step", 2.0 * FP32 * _largest_weight(sizes))
    passing = Component("activations and logits", max(peaks.start - whole, peaks.end - FP32 * sizes.embeddings, 0.0))
    return (Phase(PREPARATION, (*held, max(temporary, passing, key=lambda part: part.size))),)


def _preparation_on_engine(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    ranks: int,
    peaks: PassPeaks,
    *,
    on_gpu: bool,
) -> Phase:
    """Return the costliest moment of a step: the moments and the gradient's vector stand beside the engine."""
    engine = engine_bytes(
        config.engine.model_copy(update={"precision": "fp32"}),
        sizes.parameters,
        0,
        ranks,
        largest=_largest_weight(sizes),
        one_by_one=not stored_under_other_names(model),
        on_gpu=on_gpu,
    )
    offloaded = on_gpu and config.engine.offload == "cpu"
    standing = (
        Component("weights", engine.weights),
        Component("fp32 masters", engine.masters, offloaded),
        Component("optimizer", moments_of(config.training.optimizer) * engine.vector, offloaded),
        Component("gradients of a step", engine.vector, offloaded),
        *((Component("gathered weights", engine.gathered_weights),) if engine.gathered_weights else ()),
    )
    counted = min(peaks.end, FP32 * sizes.embeddings) if engine.in_backward else 0.0
    moments = (
        Component("activations and logits", peaks.start),
        Component("activations, logits and gradients", engine.in_backward + peaks.end - counted),
        Component("gradients while ranks exchange them", engine.in_reduction),
    )
    return Phase(PREPARATION, (*standing, max(moments, key=lambda part: part.size)))


def _largest_weight(sizes: ModelSizes) -> int:
    """Return the number of values of the largest weight."""
    return max(sizes.embeddings, sizes.largest_linear)


def _load(engine: EngineBytes, standing: tuple[Component, ...], *, on_gpu: bool) -> Phase:
    held = sum(part.size for part in standing[:2])
    loading = Component("what is read, and copies of it", max(0.0, engine.loading - held))
    host = (Component("what is read", engine.read, True),) if on_gpu else ()
    return Phase("load", (*standing[:2], loading, *host))


def _round(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    engine: EngineBytes,
    vectors: HeldVectors,
    standing: tuple[Component, ...],
    ranks: int,
    *,
    buildable: bool,
    offloaded: bool,
) -> Phase:
    """Return the costliest moment: activations, gradients or temporary vectors are at their peak."""
    local = -(-min(config.method.batch_size, max(work.forget_rows, work.retain_rows)) // ranks)
    micro = min(local, config.engine.micro_batch_size or local)
    read = micro * method_class(config.method.name, config.method.module).answers_in_pass
    peaks = _training_pass(config, model, sizes, read, work.longest, ranks) if buildable else PassPeaks(0.0, 0.0)
    several = micro < local
    full = config.model.adapter.kind == "none"
    # The pass counts the gradient of the embeddings, which the engine counts too.
    counted = min(peaks.end, _value(config) * sizes.embeddings) if full and engine.in_backward else 0.0
    gathered = _gathered_in_products(config, engine, sizes)
    compared = _target_logits(config, model, local, work.longest)
    common = (
        *standing,
        *((Component("gathered weights", engine.gathered_weights),) if engine.gathered_weights else ()),
        *((Component("the target's logits", compared),) if compared else ()),
        *_dequantized(config, sizes),
    )

    in_pass = vectors.bytes_in_pass(engine.vector, engine.gradient_vector)
    between = vectors.bytes_between(engine.vector, engine.gradient_vector)

    def moment(held: float, *parts: Component) -> tuple[Component, ...]:
        # Offloaded vectors are in host memory at any moment, so their largest number counts.
        size = max(in_pass, between) if offloaded else held
        return (*common, Component("the method's vectors", size, offloaded), *parts)

    whole = Component("what exact products hold whole", gathered)
    moments = (
        moment(
            in_pass,
            Component("gradients", engine.in_backward if several else 0.0),
            Component("activations and logits", peaks.start),
            whole,
        ),
        moment(
            in_pass,
            Component("gradients", engine.in_backward),
            Component("activations and logits", peaks.end - counted),
            whole,
        ),
        moment(in_pass, Component("gradients", engine.in_reduction), whole),
        moment(between, Component("gradients", engine.gradients, offloaded)),
    )
    on_device = [sum(part.size for part in parts if not part.on_host) for parts in moments]
    return Phase("round", moments[on_device.index(max(on_device))])


def _evaluation(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    engine: EngineBytes,
    standing: tuple[Component, ...],
    *,
    buildable: bool,
    offloaded: bool,
) -> Phase:
    forced = generated = 0.0
    if buildable:
        forced, generated = scoring_pass(
            model,
            sizes.layers,
            min(config.evaluation.batch_size, work.evaluation_rows),
            work.longest_prompt,
            work.longest_answer,
            config.evaluation.max_new_tokens if config.evaluation.rouge else 0,
            dtype=torch.bfloat16 if config.engine.precision == "bf16" else torch.float32,
            attention=_attention(config),
            detailed=config.evaluation.membership,
        )
    return Phase(
        "evaluation",
        (
            *standing,
            Component("gradients of the last round", engine.gradients, offloaded),
            Component("gathered weights", engine.gathered_weights),
            *_dequantized(config, sizes),
            Component("caches and logits", max(forced, generated)),
        ),
    )


def _save(
    engine: EngineBytes,
    standing: tuple[Component, ...],
    sizes: ModelSizes,
    adapter: AdapterConfig,
    *,
    on_gpu: bool,
    offloaded: bool,
) -> Phase:
    largest = float(FP32 * _largest_weight(sizes))
    parts = [Component("the gathered weight", engine.gathered_to_save)]
    if engine.still_gathered:
        parts.append(Component("weights that are still gathered", engine.still_gathered))
    # In host memory: a weight as it is written, or as it is read again to check it.
    parts.append(Component("the weight as it is written", largest, True))
    if adapter.kind != "none":
        parts.append(Component("the target, into which adapters are merged", FP32 * sizes.parameters, True))
    gradients = Component("gradients of the last round", engine.gradients, offloaded)
    return Phase("save", (*standing, gradients, *parts))


def _training_pass(
    config: UnlearnConfig, model: Mapping[str, Any], sizes: ModelSizes, rows: int, length: int, ranks: int
) -> PassPeaks:
    double = config.method.needs_double_backward
    derivatives = 1
    if double:
        derivatives = 3 if getattr(config.method, "decorrelation", "") == "cosine" else 2
    return training_pass(
        model,
        sizes.layers,
        rows,
        length,
        attention=_attention(config),
        dtype=torch.bfloat16 if config.engine.precision == "bf16" else torch.float32,
        checkpointing=config.engine.recomputes,
        adapter=config.model.adapter,
        derivatives=derivatives,
        whole=method_class(config.method.name, config.method.module).whole_logits
        or getattr(config.method, "uses_forward_mode", False),
        direct=config.engine.backend_on(ranks) == "torch",
    )


def _target_logits(config: UnlearnConfig, model: Mapping[str, Any], rows: int, length: int) -> float:
    """Return the bytes of the target's logits that a step keeps, in fp32, for this number of rows."""
    method = method_class(config.method.name, config.method.module)
    if not method.keeps_target_logits(config.method):
        return 0.0
    return float(FP32 * rows * (length - 1) * int(model.get("vocab_size") or 0))


def _dequantized(config: UnlearnConfig, sizes: ModelSizes) -> tuple[Component, ...]:
    """Return the weight that a quantised layer makes for a product."""
    if not config.model.adapter.is_quantized:
        return ()
    return (Component("the weight that a layer dequantises", float(_value(config) * sizes.largest_linear)),)


def _gathered_in_products(config: UnlearnConfig, engine: EngineBytes, sizes: ModelSizes) -> float:
    """Return the bytes of whole vectors, and at stage 3 of whole weights and a gradient, that exact products need."""
    in_forward_mode = getattr(config.method, "uses_forward_mode", False)
    if not config.method.needs_double_backward and not in_forward_mode:
        return 0.0
    vectors = (3 if config.method.needs_double_backward else 1) * engine.gathered
    if not engine.gathered_weights:
        return vectors
    adapter = config.model.adapter
    trainable = sizes.adapter_parameters(adapter) if adapter.kind != "none" else sizes.parameters
    return vectors + _value(config) * float(sizes.parameters + trainable)


def _attention(config: UnlearnConfig) -> Any:
    return attention_for(config.model.attention, double_backward=config.method.needs_double_backward)


def _value(config: UnlearnConfig) -> int:
    return BF16 if config.engine.precision == "bf16" else FP32
