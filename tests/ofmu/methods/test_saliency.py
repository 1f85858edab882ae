"""The saliency mask, compared with sorting, and its effect on the step of a method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from method_specs import short_spec
from ofmu.engine.config import EngineConfig
from ofmu.methods.registry import method_class
from ofmu.methods.saliency import saliency_mask
from ofmu.testing import run
from vision_case import Case, labels_of, plain_logits


def mask_by_sorting(case: Case, fraction: float) -> torch.Tensor:
    rows = case.task.forget_rows
    gradient = case.gradient(lambda model: cross_entropy(plain_logits(model, rows), labels_of(rows))).abs()
    count = int(np.ceil(fraction * len(gradient)))
    mask = torch.zeros(len(gradient), dtype=torch.bool)
    mask[gradient.argsort(descending=True)[:count]] = True
    return mask & (gradient > 0)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.9])
def test_a_masked_step_is_the_plain_step_inside_the_mask_and_no_step_outside(fraction: float) -> None:
    settings = {"steps": 1, "update": "sgd", "lr": 0.1}
    plain, masked = Case("graddiff", **settings), Case("graddiff", saliency_fraction=fraction, **settings)
    for case in (plain, masked):
        list(case.method.rounds())
    mask = mask_by_sorting(plain, fraction)
    expected = torch.where(mask, plain.flat(), plain.start())
    assert torch.equal(masked.flat()[~mask], masked.start()[~mask])
    assert torch.allclose(masked.flat(), expected, rtol=1e-12, atol=1e-15)


def test_the_mask_does_not_depend_on_the_batch_size() -> None:
    # Of 8 rows in batches of 3, the last batch is smaller.
    small, large = (
        Case("graddiff", saliency_fraction=0.3, steps=1, update="sgd", lr=0.1, batch_size=size) for size in (3, 1000)
    )
    masks = [case.engine.space._mask[0] for case in (small, large)]  # type: ignore[attr-defined]
    assert torch.equal(*masks)


def test_salun_is_random_labelling_with_the_mask() -> None:
    settings = {"steps": 2, "update": "adamw", "lr": 0.01, "weight_decay": 0.1}
    salun = Case("salun", saliency_fraction=0.4, **settings)
    wrapped = Case("randomlabels", saliency_fraction=0.4, **settings)
    for case in (salun, wrapped):
        list(case.method.rounds())
    assert torch.equal(salun.flat(), wrapped.flat())
    mask = mask_by_sorting(salun, 0.4)
    assert torch.equal(salun.flat()[~mask], salun.start()[~mask])
    assert (salun.flat()[mask] != salun.start()[mask]).float().mean() > 0.99
    assert method_class("salun").Config().saliency_fraction == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mask_includes_ties_and_no_weight_without_gradient(dtype: torch.dtype) -> None:
    case = Case("graddiff")
    gradient = torch.zeros_like(case.engine.space.masters()[0]).to(dtype)
    gradient[:10], gradient[10:20] = -2.0, 1e-30
    (mask,) = saliency_mask(case.engine.space, [gradient], 15 / len(gradient))
    assert mask.nonzero()[:, 0].tolist() == list(range(20))
    (mask,) = saliency_mask(case.engine.space, [gradient], 5 / len(gradient))
    assert mask.nonzero()[:, 0].tolist() == list(range(10))
    (mask,) = saliency_mask(case.engine.space, [gradient], 1.0)
    assert mask.sum() == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["salun", "ofmu", "graddiff"])
@pytest.mark.parametrize("stage", [0, 2, 3], ids=lambda stage: f"stage{stage}")
def test_weights_outside_the_mask_do_not_change_by_a_bit(name: str, stage: int) -> None:
    # Weight decay without a mask would change every weight.
    decay = {} if name == "ofmu" else {"weight_decay": 0.1}
    spec = short_spec(name, "vision", saliency_fraction=0.5, **decay)
    outcome = run(spec.with_engine(EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu")))
    equal = changed = 0
    for key, end in outcome.parameters.items():
        same = end == outcome.start[key]
        equal, changed = equal + int(same.sum()), changed + int((~same).sum())
    assert equal / (equal + changed) == pytest.approx(0.5, abs=0.02)
