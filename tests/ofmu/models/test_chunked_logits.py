"""Losses from chunks of logits, compared with PyTorch's losses of whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss, answer_nll
from ofmu.models.chunked_logits import ChunkedLogits, layer_for_chunks, whole_logits
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from ofmu.testing import tiny_llama, tiny_rows

CPU = torch.device("cpu")
TOKENS, WIDTH, WORDS = 7, 16, 61
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
PLAIN: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 24},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": SIZES,
    "phi": {**SIZES, "num_key_value_heads": 2},
}
"""Architectures that return what their output layer gives. The layer of phi has a bias."""
ADAPTING: dict[str, dict[str, Any]] = {
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 8},
    "cohere": {**SIZES, "logit_scale": 0.25},
    "granite": {**SIZES, "logits_scaling": 8.0},
}
"""Architectures that cap or scale the output of their output layer."""


def build(kind: str, shape: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


def gradients(loss: Tensor, inputs: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, inputs)])


@pytest.mark.parametrize("chunk_bytes", [1, 500, 2000])
@pytest.mark.parametrize("kind", ["nll", "cross_entropy", "lowered", "divergence"])
def test_values_and_gradients_are_those_of_whole_logits(kind: str, chunk_bytes: int, monkeypatch) -> None:
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(1)
    layer = nn.Linear(WIDTH, WORDS).double()
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    labels, factor = torch.randint(0, WORDS, (TOKENS,)), torch.randn(TOKENS, dtype=torch.float64)
    target = 5 * torch.randn(TOKENS, WORDS, dtype=torch.float64)
    logits, chunked = layer(hidden), ChunkedLogits(hidden, layer)
    parts = [target[:2], target[2:]]
    if kind == "nll":
        whole, found = functional.cross_entropy(logits, labels, reduction="none"), chunked.nll(labels)
    elif kind == "cross_entropy":
        whole = functional.cross_entropy(logits, target.softmax(1), reduction="none")
        found = chunked.cross_entropy(parts)
    elif kind == "lowered":
        lowered = target - 3.0 * functional.one_hot(labels, WORDS)
        whole = functional.cross_entropy(logits, lowered.softmax(1), reduction="none")
        found = chunked.cross_entropy(parts, (labels, 3.0))
    else:
        whole = (target.softmax(1) * (target.log_softmax(1) - logits.log_softmax(1))).sum(1)
        found = chunked.divergence(parts)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    inputs = [hidden, layer.weight, layer.bias]
    expected = gradients((whole * factor).sum(), inputs)
    torch.testing.assert_close(gradients((found * factor).sum(), inputs), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", PLAIN)
def test_an_architecture_gives_the_losses_of_whole_logits(kind: str, monkeypatch) -> None:
    model, rows = build(kind, PLAIN[kind]), tiny_rows(4, 1)
    parameters = list(model.parameters())
    whole = answer_nll(model, rows, 0, CPU)
    expected = gradients(whole.square().sum(), parameters)
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", 2000)
    assert layer_for_chunks(model, 100) is model.get_output_embeddings()
    found = answer_nll(model, rows, 0, CPU)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=0)
    assert (gradients(found.square().sum(), parameters) - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("kind", ADAPTING)
def test_an_architecture_that_changes_its_logits_forms_them_as_a_whole(kind: str, monkeypatch) -> None:
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", 2000)
    assert layer_for_chunks(build(kind, ADAPTING[kind]), 10**6) is None


def test_logits_that_fit_one_chunk_are_formed_as_a_whole(monkeypatch) -> None:
    model = tiny_llama()
    assert layer_for_chunks(model, 64 * 2**20 // (4 * WORDS)) is None
    assert layer_for_chunks(model, 64 * 2**20 // (4 * WORDS) + 1) is model.lm_head
    with whole_logits():
        assert layer_for_chunks(model, 10**9) is None
    assert layer_for_chunks(lambda **inputs: None, 10**9) is None


@pytest.mark.slow
@pytest.mark.parametrize("forward_mode", [False, True])
def test_exact_products_use_whole_logits(forward_mode: bool, monkeypatch) -> None:
    engine, rows = TorchEngine(tiny_llama("eager"), CostTracker()), tiny_rows(4, 1)
    vector = [torch.ones_like(part) for part in engine.space.masters()]
    expected = engine.hvp(AnswerLoss(0), rows, vector, forward_mode=forward_mode)[0]
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", 2000)
    assert torch.equal(engine.hvp(AnswerLoss(0), rows, vector, forward_mode=forward_mode)[0], expected)


def test_a_second_derivative_is_refused_and_never_wrong(monkeypatch) -> None:
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", 2000)
    model = tiny_llama("eager")
    loss = answer_nll(model, tiny_rows(4, 1), 0, CPU).sum()
    with pytest.raises(RuntimeError, match="second derivative needs whole logits"):
        torch.autograd.grad(loss, [model.lm_head.weight], create_graph=True)


def test_adapters_get_the_gradient_of_whole_logits(monkeypatch) -> None:
    found = []
    for chunk_bytes in (2**26, 2000):
        monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
        model = tiny_llama()
        add_adapters(model, AdapterConfig(kind="lora", rank=2), 0)
        found.append(TorchEngine(model, CostTracker()).gradient(AnswerLoss(0), tiny_rows(4, 1))[1][0])
    assert (found[1] - found[0]).norm() <= 1e-5 * found[0].norm()


def test_checkpointing_and_bf16_give_the_gradients_of_whole_logits(monkeypatch) -> None:
    """In bf16, both ways round the gradients of logits, so they differ from fp32 by as much as from each other."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for chunk_bytes in (2**26, 2000):
            monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
            model = tiny_llama().to(dtype).train()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            answer_nll(model, tiny_rows(6, 1), 0, CPU).sum().backward()
            found[dtype, chunk_bytes] = torch.cat([p.grad.flatten().float() for p in model.parameters()])
    fp32 = found[torch.float32, 2**26]
    assert (found[torch.float32, 2000] - fp32).norm() <= 1e-6 * fp32.norm()
    errors = [float((found[torch.bfloat16, size] - fp32).norm()) for size in (2**26, 2000)]
    assert errors[1] <= 1.1 * errors[0]
    assert not torch.equal(found[torch.bfloat16, 2**26], found[torch.bfloat16, 2000])
