"""How right are Hessian-vector products on this device: against double backward in float64 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench_derivatives import Case
from gpu.settings import Figures, Row, Settings, Skip, case_row, engine_for, need_card, need_deepspeed
from gpu.shapes import MEDIUM, build_llama
from measuring import random_rows
from ofmu.data.rows import Example
from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import finetune
from ofmu.losses import AnswerLoss
from ofmu.testing import tiny_llama, tiny_rows
from ofmu.vectors.base import Vector, VectorSpace

MODES = ("central", "exact", "reverse_over_forward")
GOALS = {"central": ("<=", 1e-3), "exact": ("<=", 1e-3), "reverse_over_forward": ("<=", 1e-3)}
CLOSED, OPEN = 1.0, -1.0
"""Thresholds under which the hinge is always closed, so that ∇²Φ = H_f, and always open."""

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """The exact derivatives, in float64 and by parameter name."""

    similarity_part: Named
    """β·∇S"""
    direction: Named
    """u = g_f"""
    product: Named
    """H_f·u"""


def measure(settings: Settings) -> Iterator[Row]:
    forget, retain, trained = _problem(settings)
    fp32 = _case(settings, trained, forget, retain)
    rounded = _case(settings, trained.bfloat16().float(), forget, retain)
    for name, case in (("fp32", fp32), ("bf16", rounded)):
        wanted = _wanted(case)
        for mode in MODES:
            for tf32 in (False, True) if name == "fp32" else (False,):
                label = f"{mode}, {name}" + (" with TF32" if tf32 else "")
                engine = engine_for(settings, None if name == "fp32" else 2, precision=name)
                # bf16 is compared with the same derivative by double backward, and TF32 with fp32: no goal.
                goals = {key: GOALS[mode] for key in ("∇S", "H·u")} if name == "fp32" and not tf32 else {}
                yield case_row(
                    label,
                    partial(_errors, settings, case, mode, engine, wanted, tf32=tf32),
                    config={"derivative": mode, "engine": engine, "tf32": tf32},
                    goals=goals,
                )


def _problem(settings: Settings) -> tuple[list[Example], list[Example], nn.Module]:
    """Return rows to forget, rows to retain, and a small model that was trained on both."""
    if settings.tiny:
        forget, retain = tiny_rows(6, 1), tiny_rows(6, 2)
    else:
        forget, retain = (random_rows(6, MEDIUM["vocab_size"], 24, prompt=8, seed=seed) for seed in (1, 2))
    model = _llama(settings, "sdpa")
    training = TrainingConfig(epochs=3 if settings.tiny else 20, batch_size=4, learning_rate=1e-3)
    finetune(model, forget + retain, training, seed=settings.seed, pad_id=0)
    return forget, retain, model


def _llama(settings: Settings, attention: str) -> nn.Module:
    model: nn.Module
    if settings.tiny:
        model = tiny_llama(attention)
    else:
        model = build_llama(MEDIUM, "cpu", attention=attention, seed=settings.seed)
    return model


def _case(settings: Settings, model: nn.Module, forget: list[Example], retain: list[Example]) -> Case:
    weights = copy.deepcopy(model.state_dict())

    def load(double_backward: bool) -> nn.Module:
        loaded = _llama(settings, "eager" if double_backward else "sdpa")
        loaded.load_state_dict(weights)
        return loaded

    return Case(load, AnswerLoss(0), forget, retain)


def _wanted(case: Case) -> Wanted:
    opened = case.derivatives("exact", double=True)
    at = opened.phi_gradient(*case.batches)
    part = opened.space.combine((1.0, at.gradient), (-1.0, at.point.forget_gradient))
    closed = case.derivatives("exact", double=True, similarity_threshold=CLOSED)
    phi = closed.phi_gradient(*case.batches)
    named = [
        {name: tensor.detach().cpu().clone() for name, tensor in space.gather(vector).items()}
        for space, vector in (
            (opened.space, part), (closed.space, phi.gradient), (closed.space, closed.penalty_product(phi)),
        )
    ]  # fmt: skip
    return Wanted(*named)


def _errors(
    settings: Settings, case: Case, mode: str, engine: Mapping[str, Any], wanted: Wanted, *, tf32: bool
) -> Figures:
    config = EngineConfig.model_validate(engine)
    if tf32:
        need_card(settings)
    if config.precision == "bf16":
        need_deepspeed()
        if mode == "central":
            raise Skip("bf16 rounds the perturbation away, and the product refuses it")
        if settings.device == "cuda" and not torch.cuda.is_bf16_supported():
            raise Skip("this card has no bf16")
    engines: list[Engine] = []

    def make_engine(model: nn.Module) -> Engine:
        engines.append(build_engine(model, config, CostTracker()))
        _allow_tf32(on=tf32)  # the engine has switched it off
        return engines[-1]

    try:
        opened = case.derivatives(mode, make_engine=make_engine, similarity_threshold=OPEN)
        phi = opened.phi_gradient(*case.batches)
        forget_gradient = opened.space.combine((1.0, phi.point.forget_gradient))
        if mode == "central":
            phi, _ = opened.fit_inner_step(phi)
        part = opened.space.combine((1.0, phi.gradient), (-1.0, forget_gradient))
        similarity_error = _apart(opened.space.gather(part), wanted.similarity_part)
        engines.pop().close()
        closed = case.derivatives(mode, make_engine=make_engine, similarity_threshold=CLOSED)
        u = _in_space(closed.space, wanted.direction)
        phi = replace(closed.phi_gradient(*case.batches), gradient=u, norm=closed.space.norm(u))
        product = closed.penalty_product(phi)
        if mode == "central":
            product, _ = closed.fit_outer_step(phi, product, closed.space.norm)
        return {"∇S": similarity_error, "H·u": _apart(closed.space.gather(product), wanted.product)}
    finally:
        _allow_tf32(on=False)
        for left in engines:
            left.close()


def _allow_tf32(*, on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def _in_space(space: VectorSpace, named: Named) -> Vector:
    """Return a vector of the space from its parts by parameter name."""
    vector = space.zeros()
    for segment in space.segments():
        part = named[segment.parameter].flatten()[segment.start : segment.start + segment.length]
        vector[segment.tensor].narrow(0, segment.offset, segment.length).copy_(part)
    return vector


def _apart(found: Named, wanted: Named) -> float:
    """Return ‖found − wanted‖/‖wanted‖."""
    apart = sum(float((found[name].double().cpu() - wanted[name]).square().sum()) for name in wanted)
    return float((apart / sum(float(tensor.square().sum()) for tensor in wanted.values())) ** 0.5)
