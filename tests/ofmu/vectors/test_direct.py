"""Gradients that are added part by part, compared with autograd's, and the largest tensor that a pass makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from largest_tensor import LargestTensor
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss
from ofmu.testing import tiny_rows
from ofmu.vectors import direct

WORDS, WIDTH = 61, 32
HUGE = 10**9


def llama(*, tied: bool, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=tied, attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def gradient(
    model: LlamaForCausalLM, part: int, monkeypatch: pytest.MonkeyPatch, micro_batch_size: int | None = None
) -> tuple[float, Tensor]:
    """Return the loss, and a vector of ones plus half of the gradient, by an engine of its own."""
    monkeypatch.setattr(direct, "PART", part)
    engine = TorchEngine(model, CostTracker(), micro_batch_size)
    start = [torch.ones_like(tensor) for tensor in engine.space.masters()]
    value, (vector,) = engine.gradient(AnswerLoss(0), tiny_rows(5, seed=1), into=start, scale=0.5)
    return value, vector


@pytest.mark.parametrize("chunk_bytes", [HUGE, 400])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_in_parts_is_that_of_autograd(
    tied: bool, micro_batch_size: int | None, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    expected = gradient(llama(tied=tied, dtype=torch.float64), HUGE, monkeypatch, micro_batch_size)
    found = gradient(llama(tied=tied, dtype=torch.float64), 3 * WIDTH, monkeypatch, micro_batch_size)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)


def test_a_gradient_in_parts_has_the_bits_of_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the embeddings and the output layer are two weights, each sum has the order that it had."""
    whole = gradient(llama(tied=False), HUGE, monkeypatch)[1]
    assert torch.equal(gradient(llama(tied=False), 16 * WIDTH, monkeypatch)[1], whole)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [HUGE, 400])
@pytest.mark.parametrize("tied", [False, True])
def test_no_pass_makes_a_tensor_as_large_as_the_embeddings(
    tied: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(direct, "PART", 8 * WIDTH)
    config = LlamaConfig(
        vocab_size=4000, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    engine = TorchEngine(LlamaForCausalLM(config), CostTracker())
    vector, rows = engine.space.zeros(), tiny_rows(1, seed=1)
    with LargestTensor([*engine.space.masters(), *vector]) as seen:
        engine.gradient(AnswerLoss(0), rows, into=vector)
    assert 0 < seen.largest < 4 * 4000 * WIDTH


def test_the_padding_row_gets_no_gradient_from_the_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "PART", 4)
    layer = nn.Embedding(7, 2, padding_idx=3)
    ids = torch.tensor([[3, 1, 6], [1, 3, 0]])
    weights = torch.randn(2, 3, 2)
    (layer(ids) * weights).sum().backward()
    assert layer.weight.grad is not None
    target = torch.zeros(7, 2)
    with direct.direct_gradients(layer, {id(layer.weight): direct.GradientSink(target, 1.0)}):
        (layer(ids) * weights).sum().backward()
    assert torch.equal(target, layer.weight.grad)
    assert "forward" not in layer.__dict__


def test_a_bias_and_a_frozen_input_keep_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "PART", 4)
    layer, x = nn.Linear(3, 5), torch.randn(2, 4, 3)
    layer(x).square().sum().backward()
    expected, bias = layer.weight.grad, layer.bias.grad
    layer.weight.grad = layer.bias.grad = None
    target = torch.zeros(5, 3)
    with direct.direct_gradients(layer, {id(layer.weight): direct.GradientSink(target, 1.0)}):
        layer(x).square().sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(target, expected)
    assert torch.equal(layer.bias.grad, bias)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_exact_products_take_the_ordinary_way(forward_mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def product(part: int) -> Tensor:
        monkeypatch.setattr(direct, "PART", part)
        engine = TorchEngine(llama(tied=True, dtype=torch.float64), CostTracker())
        along = [torch.ones_like(tensor) for tensor in engine.space.masters()]
        return engine.hvp(AnswerLoss(0), tiny_rows(2, seed=1), along, forward_mode=forward_mode)[0]

    assert torch.equal(product(3 * WIDTH), product(HUGE))


def test_gradients_in_parts_under_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointed = llama(tied=False).train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    whole = gradient(llama(tied=False), HUGE, monkeypatch)[1]
    torch.testing.assert_close(gradient(checkpointed, 16 * WIDTH, monkeypatch)[1], whole, rtol=1e-6, atol=1e-6)
