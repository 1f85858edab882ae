"""Products by reverse over forward, against double backward with PyTorch's own operations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ofmu.engine.cost import CostTracker
from ofmu.engine.forward_mode import tangent
from ofmu.engine.torch import TorchEngine
from ofmu.errors import ConfigError
from ofmu.losses import AnswerLoss
from ofmu.methods.ofmu.loss import ClampedLoss
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from ofmu.testing import tiny_classifier, tiny_image_task, tiny_rows
from ofmu.vectors.base import Vector

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 8},
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 24},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": SIZES,
    "qwen3_moe": {**SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}


def make_model(kind: str, attention: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **MODELS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64)
    # The grouped product of experts has no float64.
    model.set_experts_implementation("eager")
    return model.eval()


def direction_of(engine: TorchEngine) -> Vector:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in engine.space.masters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "attention"),
    [*((kind, "eager") for kind in MODELS), *((kind, "sdpa") for kind in MODELS if kind != "gemma2")],
)
def test_a_product_equals_double_backward(kind: str, attention: str) -> None:
    loss, rows = ClampedLoss(AnswerLoss(0), 6.0, 4.0), tiny_rows(3, 1)
    exact = TorchEngine(make_model(kind, "eager"), CostTracker())
    vector = direction_of(exact)
    expected = exact.hvp(loss, rows, vector)[0]
    tracker = CostTracker()
    engine = TorchEngine(make_model(kind, attention), tracker, micro_batch_size=2)
    found = engine.hvp(loss, rows, vector, forward_mode=True)[0]
    # Transformers computes softmax and rotary embeddings in fp32, so fp32's digits are those that agree.
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert tracker.gradient_evaluations == 3


@pytest.mark.slow
def test_adapters_alone_are_differentiated() -> None:
    loss, rows = AnswerLoss(0), tiny_rows(3, 1)
    products = []
    for forward_mode in (False, True):
        model = make_model("llama", "eager")
        add_adapters(model, AdapterConfig(kind="lora", rank=2), 0)
        engine = TorchEngine(model.double(), CostTracker())
        products.append(engine.hvp(loss, rows, direction_of(engine), forward_mode=forward_mode)[0])
    assert (products[0] - products[1]).norm() <= 1e-5 * products[0].norm()


def test_a_classifier_with_batch_norm_is_differentiated() -> None:
    task = tiny_image_task()
    products = []
    for forward_mode in (False, True):
        engine = TorchEngine(tiny_classifier().double().eval(), CostTracker())
        rows = task.forget_rows[:3]
        products.append(engine.hvp(task.loss, rows, direction_of(engine), forward_mode=forward_mode)[0])
    assert (products[0] - products[1]).norm() <= 1e-5 * products[0].norm()


def test_an_operation_without_forward_mode_is_named() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return 2 * values

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return 2 * gradients[0]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self) -> torch.Tensor:
            return Twice.apply(self.weight).sum()

    with pytest.raises(ConfigError, match=r"has no forward mode.*'exact'"):
        tangent(Model(), {"weight": torch.ones(2)}, lambda module: module())
