"""Which settings cannot work together (an error that names the mend) and which have no effect (a warning)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ofmu.config import MethodConfig, UnlearnConfig


def needs_products(method: MethodConfig) -> bool:
    """Return whether a run under these settings can ever take a Hessian-vector product."""
    return method.outer_steps > 0 and (method.similarity_weight > 0 or method.penalty_weight > 0)


def outer_derivative(method: MethodConfig) -> str:
    """Return the way ∇²Φ·∇Φ is made: ``exact`` or ``central``, never a forward difference."""
    return method.outer_derivative or ("exact" if method.derivative == "exact" else "central")


def refuse_impossible(config: UnlearnConfig) -> None:
    """Raise ValueError with one sentence for the first contradiction found."""
    method, engine = config.method, config.engine
    products = needs_products(method)
    ways = {method.derivative, outer_derivative(method)}
    if products and "exact" in ways and engine.backend == "deepspeed" and engine.zero_stage == 3:
        raise ValueError(
            "method.derivative 'exact' cannot work at engine.zero_stage 3, where parameters are sharded during "
            "the double backward: use 'central', or a zero_stage of at most 2"
        )
    if products and engine.precision == "bf16" and ways != {"exact"}:
        raise ValueError(
            f"method.derivative '{method.derivative}' with outer_derivative '{outer_derivative(method)}' needs "
            "fp32 weights and compute, since bf16 rounds the perturbation away: set engine.precision to 'fp32', "
            "or both derivatives to 'exact' at a zero_stage of at most 2"
        )
    if products and "exact" in ways and config.model.attention == "sdpa":
        raise ValueError(
            "method.derivative 'exact' needs a second derivative that fused attention lacks: "
            "set model.attention to 'eager' or 'auto'"
        )
    if engine.precision == "bf16" and (engine.backend == "torch" or engine.zero_stage == 0):
        raise ValueError(
            "engine.precision 'bf16' keeps fp32 masters in DeepSpeed's shards: "
            "use engine.backend 'deepspeed' with a zero_stage of at least 1"
        )
    if engine.offload == "cpu" and (engine.backend == "torch" or engine.zero_stage == 0):
        raise ValueError(
            "engine.offload 'cpu' moves DeepSpeed's shards: "
            "use engine.backend 'deepspeed' with a zero_stage of at least 1"
        )
    if method.penalty_max is not None and method.penalty_max < method.penalty_weight:
        raise ValueError(
            f"method.penalty_max {method.penalty_max} is below method.penalty_weight {method.penalty_weight}: "
            "raise it or leave it out"
        )


def ineffective_settings(config: UnlearnConfig) -> list[str]:
    """Return one sentence for every setting that this run will ignore."""
    method = config.method
    notes: list[str] = []
    if method.similarity_weight == 0 and method.similarity_threshold != -1:
        notes.append("method.similarity_threshold has no effect: method.similarity_weight is 0")
    if method.similarity_weight > 0 and method.similarity_threshold == 1:
        notes.append("method.similarity_weight has no effect: with similarity_threshold 1 the hinge never opens")
    if method.penalty_weight == 0 and (method.penalty_growth != 1 or method.penalty_max is not None):
        notes.append("method.penalty_growth and penalty_max have no effect: method.penalty_weight is 0")
    if method.penalty_weight == 0 and method.outer_derivative is not None:
        notes.append("method.outer_derivative has no effect: method.penalty_weight is 0")
    if method.outer_update == "sgd" and method.weight_decay > 0:
        notes.append("method.weight_decay has no effect: the outer update 'sgd' applies none")
    if method.derivative_check_every and (not needs_products(method) or method.derivative == "exact"):
        notes.append("method.derivative_check_every has no effect: no finite difference is taken")
    if config.engine.backend == "torch" and config.engine.zero_stage not in (0, 2):
        notes.append("engine.zero_stage has no effect: engine.backend is 'torch'")
    return notes
