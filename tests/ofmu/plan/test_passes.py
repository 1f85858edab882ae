from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.evaluation.robustness.divergence import summed_divergence
from ofmu.evaluation.scoring.kv_cache import GROWTH
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import logits_of_one_pass, score_examples
from ofmu.losses import AnswerLoss, answer_nll
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from ofmu.plan.passes import divergence_pass, scoring_pass, training_pass

SHAPE: dict[str, Any] = {
    "vocab_size": 700,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LAYERS, ROWS, LENGTH = 9, 3, 40


def llama(attention: str) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, attn_implementation=attention, **SHAPE))
    model.train()
    return model


def allocated(model: nn.Module, work: Any) -> float:
    """Return the most bytes that were allocated on the CPU during ``work``, as PyTorch's own profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "checkpointing"), [("sdpa", False), ("eager", False), ("eager", True)])
@pytest.mark.parametrize("adapter", [AdapterConfig(), AdapterConfig(kind="lora")])
def test_a_backward_pass_takes_what_the_profiler_counts(attention, checkpointing, adapter):
    model = llama(attention)
    add_adapters(model, adapter, 0)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # one short row: a mask is then built, as for most minibatches
    batch = [Example((1,) * LENGTH, 1)] * (ROWS - 1) + [Example((1,) * (LENGTH - 5), 1)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(drop_gradient)
    device = torch.device("cpu")
    found = allocated(model, lambda: torch.autograd.backward(answer_nll(model, batch, 0, device).sum()))
    config = {"model_type": "llama", **SHAPE, "num_hidden_layers": LAYERS}
    planned = training_pass(
        config, LAYERS, ROWS, LENGTH, attention=attention, dtype=torch.float32, checkpointing=checkpointing,
        adapter=adapter,
    )  # fmt: skip
    assert max(planned.start, planned.end) == pytest.approx(found, rel=0.1)


@pytest.mark.slow
def test_gradients_in_parts_take_what_the_profiler_counts(monkeypatch):
    """Embeddings and output layer are one weight, whose two gradients would be most of this short pass."""
    monkeypatch.setattr("ofmu.vectors.direct.PART", 96 * 64)
    shape = {**SHAPE, "vocab_size": 9001, "tie_word_embeddings": True}
    torch.manual_seed(0)
    engine = TorchEngine(LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, **shape)).train(), CostTracker())
    batch = [Example((1,) * 8, 1)]
    vector = engine.space.zeros()
    found = allocated(engine.model, lambda: engine.gradient(AnswerLoss(0), batch, into=vector))
    config = {"model_type": "llama", **shape, "num_hidden_layers": LAYERS}
    options: dict[str, Any] = {"attention": "sdpa", "dtype": torch.float32, "adapter": AdapterConfig()}
    planned, whole = (
        training_pass(config, LAYERS, 1, 8, checkpointing=False, direct=direct, **options) for direct in (True, False)
    )
    assert max(planned.start, planned.end) == pytest.approx(found, rel=0.1)
    assert max(whole.start, whole.end) > 1.2 * found


def drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@pytest.mark.slow
def test_checkpointing_and_smaller_batches_take_less():
    config = {"model_type": "llama", **SHAPE, "num_hidden_layers": LAYERS}
    options: dict[str, Any] = {"attention": "sdpa", "dtype": torch.float32, "adapter": AdapterConfig()}
    whole = training_pass(config, LAYERS, 8, LENGTH, checkpointing=False, **options)
    assert training_pass(config, LAYERS, 8, LENGTH, checkpointing=True, **options).start < 0.7 * whole.start
    assert training_pass(config, LAYERS, 1, LENGTH, checkpointing=False, **options).start < 0.3 * whole.start
    twice = training_pass(
        config, LAYERS, 8, LENGTH, checkpointing=False, **{**options, "attention": "eager"}, derivatives=2
    )
    assert twice.start > 2 * whole.start


@pytest.mark.slow
def test_scoring_grows_with_its_answers():
    config = {"model_type": "llama", **SHAPE, "num_hidden_layers": LAYERS}
    options: dict[str, Any] = {"dtype": torch.float32, "attention": "sdpa"}
    short, generated = scoring_pass(config, LAYERS, 4, 20, 10, 8, **options)
    long, _ = scoring_pass(config, LAYERS, 4, 20, 100, 8, **options)
    logits = 4 * 700 * 4  # rows, vocabulary, bytes
    assert long - short > 80 * logits
    # Generation reads fewer tokens at a time, but its cache has free positions: fp32 keys and values of four rows.
    free = GROWTH * LAYERS * 4 * 2 * SHAPE["hidden_size"] * 4
    assert 0 < generated <= short + free
    assert scoring_pass(config, LAYERS, 4, 20, 10, 0, **options)[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [2**26, 2**16])
def test_chunks_of_logits_take_what_the_profiler_counts(chunk_bytes, monkeypatch):
    """The vocabulary is so large that whole logits are most of a pass."""
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    shape = {**SHAPE, "vocab_size": 20_000 + chunk_bytes % 997}  # passes of equal models are computed once
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, attn_implementation="sdpa", **shape)).train()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(drop_gradient)
    batch = [Example((1,) * LENGTH, 1)] * (ROWS - 1) + [Example((1,) * (LENGTH - 5), 1)]
    device = torch.device("cpu")
    found = allocated(model, lambda: torch.autograd.backward(answer_nll(model, batch, 0, device).sum()))
    config = {"model_type": "llama", **shape, "num_hidden_layers": LAYERS}
    options: dict[str, Any] = {"attention": "sdpa", "dtype": torch.float32, "adapter": AdapterConfig()}
    planned = training_pass(config, LAYERS, ROWS, LENGTH, checkpointing=False, **options)
    assert max(planned.start, planned.end) == pytest.approx(found, rel=0.1)
    whole = training_pass(config, LAYERS, ROWS, LENGTH, checkpointing=False, whole=True, **options)
    assert (whole.start > 1.5 * planned.start) == (chunk_bytes == 2**16)


@pytest.mark.slow
def test_generation_has_the_logits_of_one_token_at_a_time():
    config = {"model_type": "llama", **SHAPE, "vocab_size": 50_000, "num_hidden_layers": LAYERS}
    options: dict[str, Any] = {"dtype": torch.float32, "attention": "sdpa"}
    _, few = scoring_pass(config, LAYERS, 4, 20, 3, 8, **options)
    _, many = scoring_pass(config, LAYERS, 4, 20, 3, 40, **options)
    assert many - few < 0.2 * 4 * 32 * 50_000 * 4  # a fifth of the logits of 32 more tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_shared_passes_take_no_more_than_the_longest_rows(seed):
    """Short rows share larger passes, and answers share prompts whose cache stays for the next pass."""
    chance = random.Random(seed)
    model, tokenizer = llama("sdpa").eval(), SimpleNamespace(eos_token_id=2, pad_token_id=0)
    batch, prompt, answer = 8, 40, chance.choice((30, 90))
    rows = [Example((1,) * (prompt + answer), prompt)]
    for number in range(40):
        length, answers = chance.randint(2, prompt), chance.choice((1, 4))
        for _ in range(answers):
            rows.append(Example((number + 3,) * length + (2,) * chance.randint(1, answer), length))
    config = {"model_type": "llama", **SHAPE, "num_hidden_layers": LAYERS}
    planned, _ = scoring_pass(
        config, LAYERS, batch, prompt, answer, 0, dtype=torch.float32, attention="sdpa", detailed=True
    )
    found = allocated(model, lambda: score_examples(model, tokenizer, rows, batch, Shard(), detailed=range(len(rows))))
    assert 0.5 * planned < found < 1.1 * planned
    longest = [Example((number,) * (prompt + answer), prompt) for number in range(batch)]
    found = allocated(model, lambda: score_examples(model, tokenizer, longest, batch, Shard()))
    assert found < 1.1 * planned


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_divergence_takes_what_the_profiler_counts(attention):
    model, answer = llama(attention).eval(), 12
    batch = [Example((1,) * LENGTH, LENGTH - answer)] * ROWS
    before = torch.zeros(answer, SHAPE["vocab_size"])

    def compare() -> None:
        for logits in logits_of_one_pass(model, batch, 0):
            summed_divergence(before, logits)

    found = allocated(model, compare)
    config = {"model_type": "llama", **SHAPE, "num_hidden_layers": LAYERS}
    planned = divergence_pass(config, LAYERS, ROWS, LENGTH, answer, attention=attention, dtype=torch.float32)
    assert planned == pytest.approx(found, rel=0.1)
