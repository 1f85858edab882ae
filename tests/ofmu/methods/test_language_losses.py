"""The directions of the methods on text with one loop, compared with their formulas, one row at a time in float64.

Where possible, the tests use another form than the code: odds instead of log σ, probabilities instead of logits, and
antiderivatives instead of detached weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from independent import assert_close, flat, gradient_of, make_method, mean_nll, nll, perturb, token_logits
from method_specs import short_spec
from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import ConfigError
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.registry import method_class
from ofmu.testing import tiny_language_task, tiny_llama

Formula = Callable[[nn.Module, nn.Module, Sequence[Example]], tuple[Tensor, Tensor]]
"""A function of (model, target, forget rows). It returns the loss, and a scalar with the gradient of the loss."""


def probabilities(model: nn.Module, row: Example) -> Tensor:
    return token_logits(model, row).softmax(-1)


def true_probabilities(model: nn.Module, row: Example) -> Tensor:
    answer = torch.tensor(row.input_ids[row.answer_start :])
    return probabilities(model, row)[torch.arange(len(answer)), answer]


def divergence(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> Tensor:
    """Return KL(target ‖ model), averaged over answer tokens."""
    per_token = []
    for row in rows:
        old, new = probabilities(target, row).detach(), probabilities(model, row)
        per_token.append((old * torch.log(old / new)).sum(-1))
    return torch.cat(per_token).mean()


def ascent(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    loss = torch.cat([torch.log(true_probabilities(model, row)) for row in rows]).mean()
    return loss, loss


def npo(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    b = 0.2
    odds = [(torch.exp(-nll(model, row)) / torch.exp(-nll(target, row)).detach()) ** b for row in rows]
    loss = torch.stack([2 / b * torch.log(1 + ratio) for ratio in odds]).mean()
    return loss, loss


def simnpo(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    b, delta = 2.5, 3.0
    means = [true_probabilities(model, row).log().mean() for row in rows]
    loss = torch.stack([2 / b * torch.log(1 + math.exp(b * delta) * torch.exp(b * mean)) for mean in means]).mean()
    return loss, loss


def dpo(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    return preference(model, target, rows, tiny_language_task().refusals())


def altpo(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    task = tiny_language_task()
    return preference(model, target, rows, task.alternates(TorchEngine(tiny_llama(), CostTracker())))


def preference(
    model: nn.Module, target: nn.Module, rows: Sequence[Example], preferred: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    b, forget_rows = 0.2, list(tiny_language_task().forget_rows)
    per_row = []
    for row in rows:
        better = preferred[forget_rows.index(row)]
        gains = [torch.exp(-nll(model, r)) / torch.exp(-nll(target, r)).detach() for r in (better, row)]
        per_row.append(2 / b * torch.log(1 + (gains[1] / gains[0]) ** b))
    loss = torch.stack(per_row).mean()
    return loss, loss


def idk(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    refusals = tiny_language_task().refusals()
    assert all(row in refusals for row in rows)
    loss = mean_nll(model, rows)
    return loss, loss


def undial(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    per_token = []
    for row in rows:
        answer = torch.tensor(row.input_ids[row.answer_start :])
        lowered = probabilities(target, row).detach()
        lowered[torch.arange(len(answer)), answer] *= math.exp(-3.0)
        lowered = lowered / lowered.sum(-1, keepdim=True)
        per_token.append(-(lowered * probabilities(model, row).log()).sum(-1))
    loss = torch.cat(per_token).mean()
    return loss, loss


def wga(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """∇(p^b/b) = p^b ∇log p = −p^b ∇nll."""
    p = torch.cat([true_probabilities(model, row) for row in rows])
    return (p**1.5 * p.log()).mean(), (p**1.5 / 1.5).mean()


def satimp(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """∇(p²/2 − 2p³/3 + p⁴/4) = p²(1 − p)² ∇log p."""
    p = torch.cat([true_probabilities(model, row) for row in rows])
    return (p**2 * (1 - p) ** 2 * p.log()).mean(), (p**2 / 2 - 2 * p**3 / 3 + p**4 / 4).mean()


def ceu(model: nn.Module, target: nn.Module, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """The gradient with respect to the logits is π − q, where q is π without the true token."""
    values, surrogates = [], []
    for row in rows:
        answer = torch.tensor(row.input_ids[row.answer_start :])
        logits, p = token_logits(model, row), probabilities(model, row).detach()
        q = p.clone()
        q[torch.arange(len(answer)), answer] = 0
        q = q / (1 - true_probabilities(model, row).detach()).unsqueeze(1)
        values.append(-(q * p.log()).sum(-1)[1:])
        surrogates.append(((p - q) * logits).sum(-1)[1:])
    return torch.cat(values).mean(), torch.cat(surrogates).mean()


CASES: list[tuple[str, dict[str, Any], Formula, str]] = [
    ("gradascent", {}, ascent, "nll"),
    ("graddiff", {}, ascent, "nll"),
    ("klmin", {}, ascent, "kl"),
    ("npo", {"beta": 0.2}, npo, "nll"),
    ("npo", {"beta": 0.2, "retain_loss": "kl"}, npo, "kl"),
    ("simnpo", {"beta": 2.5, "delta": 3.0}, simnpo, "nll"),
    ("dpo", {"beta": 0.2}, dpo, "nll"),
    ("altpo", {"beta": 0.2}, altpo, "nll"),
    ("idk", {}, idk, "nll"),
    ("undial", {"beta": 3.0}, undial, "nll"),
    ("undial", {"beta": 3.0, "retain_loss": "kl"}, undial, "kl"),
    ("wga", {"beta": 1.5}, wga, "nll"),
    ("satimp", {"beta1": 2.0, "beta2": 2.0}, satimp, "nll"),
    ("ceu", {}, ceu, "nll"),
]


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [2**26, 3000])
@pytest.mark.parametrize(
    ("name", "settings", "formula", "retain"), CASES, ids=[f"{case[0]}-{case[3]}" for case in CASES]
)
def test_a_direction_is_the_weighted_sum_of_the_formulas_gradients(
    name: str,
    settings: dict[str, Any],
    formula: Formula,
    retain: str,
    chunk_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 3,000 bytes, the 61 words of the vocabulary are cut into several chunks."""
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    settings = {"forget_weight": 0.7, "retain_weight": 1.3} | settings
    method, model, target = make_method(name, **settings)
    twin, _, _ = make_method(name, **settings)
    perturb(model)
    moved = flat(model)
    direction = method.direction()
    forget_rows, retain_rows = twin._forget_sampler.draw(), twin._retain_sampler.draw()
    value, surrogate = formula(model, target, forget_rows)
    retain_value = divergence(model, target, retain_rows) if retain == "kl" else mean_nll(model, retain_rows)
    assert direction.forget_loss == pytest.approx(value.item(), rel=1e-9)
    assert direction.retain_loss == pytest.approx(retain_value.item(), rel=1e-9)
    g_f, g_r = gradient_of(surrogate, model), gradient_of(retain_value, model)
    assert_close(direction.vector[0], 0.7 * g_f + 1.3 * g_r)
    # Both parts are large enough that an error in either would fail above.
    assert min(g_f.norm(), g_r.norm()) > 1e-3 * direction.vector[0].norm()
    assert torch.equal(flat(model), moved)


def test_the_published_weights_are_the_defaults() -> None:
    """The γ of SatImp and of SimNPO is not 1. UNDIAL, CE-U and GradAscent have no retain term."""
    weights = {}
    for name in ("gradascent", "graddiff", "klmin", "npo", "simnpo", "dpo", "idk", "undial", "wga", "satimp", "ceu"):
        settings: Any = method_class(name).Config()
        weights[name] = settings.forget_weight, settings.retain_weight
        for key, value in method_class(name).published.items():
            assert key in {"lr", "batch_size"} or getattr(settings, key) == value
    assert {name: pair for name, pair in weights.items() if pair != (1.0, 1.0)} == {
        "gradascent": (1.0, 0.0),
        "simnpo": (0.125, 1.0),
        "undial": (1.0, 0.0),
        "satimp": (0.1, 1.0),
        "ceu": (1.0, 0.0),
    }


@pytest.mark.slow
def test_a_comparison_of_logits_with_the_target_costs_one_forward_pass_per_step() -> None:
    """KL and UNDIAL compare logits at each step. NPO and DPO read all rows once, before the first step."""
    passes = {}
    for name, settings in (("graddiff", {}), ("klmin", {}), ("undial", {"retain_loss": "kl", "retain_weight": 1.0})):
        method, _, _ = make_method(name, **settings)
        list(method.rounds())
        passes[name] = method.engine.cost_tracker.forward_evaluations / method.steps_taken
    assert passes == {"graddiff": 0, "klmin": 1, "undial": 2}
    for name, answers in (("npo", 1), ("dpo", 2)):
        method, _, _ = make_method(name)
        minibatches = math.ceil(answers * len(method.task.forget_rows) / method.config.batch_size)
        assert method.engine.cost_tracker.forward_evaluations == minibatches
        list(method.rounds())
        assert method.engine.cost_tracker.forward_evaluations == minibatches


def test_dpo_counts_the_tokens_of_refusals_too() -> None:
    method, _, _ = make_method("dpo", retain_weight=0.0)
    before = method.engine.cost_tracker.tokens
    rows = list(method.task.forget_rows[:3])
    method.engine.gradient(method.forget_loss(rows), rows)
    lengths = [len(row.input_ids) + row.answer_start + 3 for row in rows]
    assert method.engine.cost_tracker.tokens - before == sum(lengths)


def make_ceu(rows: Sequence[Example], **settings: Any) -> Any:
    task = tiny_language_task()
    task.forget_rows = rows
    return build_method(
        Context(TorchEngine(tiny_llama(), CostTracker()), task, seed=5), short_spec("ceu", **settings).method
    )


def test_ceu_leaves_out_rows_without_a_token_in_the_loss() -> None:
    long, short = Example((3, 4, 5, 6, 7), 2), Example((3, 4, 5), 2)
    method = make_ceu([long, short])
    assert method.forget_rows() == [long]
    assert method.forget_loss([long]).size(long) == 2
    value, _ = method.engine.gradient(method.forget_loss([long]), [long])
    padded, _ = method.engine.gradient(method.forget_loss([long]), [long, short])
    assert padded == pytest.approx(value, rel=1e-6)
    with pytest.raises(
        ConfigError,
        match=r"skipped_tokens 3 leaves no token.*set skipped_tokens below 3, the length of the longest answer",
    ):
        make_ceu([long, short], skipped_tokens=3)


def test_settings_without_effect_raise_or_are_named() -> None:
    with pytest.raises(ValidationError, match="retain_loss"):
        short_spec("klmin", retain_loss="nll")
    assert short_spec("wga", retain_loss="kl", retain_weight=0.0).method.ineffective() == [
        "method.retain_loss has no effect: method.retain_weight is 0"
    ]
    assert short_spec("klmin").method.ineffective() == []
