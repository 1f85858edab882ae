"""Configs that ask for more than the weights hold, or than the machine has: one sentence, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from ofmu.errors import ModelError
from ofmu.models.config import ResNetConfig, ScratchModelConfig
from ofmu.models.files import check_model_directory
from ofmu.models.language import load_config, load_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.vision.model import build_classifier

pytestmark = pytest.mark.timeout(60)

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=8),
    "qwen2": Qwen2Config(**SMALL),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2),
    "moe": Qwen3MoeConfig(**SMALL, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, head_dim=8),
}


def saved(folder: Path, name: str, **changes: Any) -> Path:
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_model_with_its_own_config_is_loaded(tmp_path: Path, name: str) -> None:
    load_model(saved(tmp_path, name))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"num_hidden_layers": 10**9}),
        ("llama", {"num_hidden_layers": 1e9}),
        ("gemma2", {"num_hidden_layers": 10**9, "layer_types": None}),
        ("gpt2", {"n_layer": 10**8}),
        ("gpt2", {"n_positions": 10**12}),
        ("moe", {"num_experts": 10**9}),
        ("llama", {"vocab_size": 10**12}),
        ("llama", {"hidden_size": 10**9}),
        ("llama", {"intermediate_size": 10**18}),
        ("gpt2", {"n_embd": 10**10}),
        ("llama", {"num_attention_heads": 10**9}),
        ("llama", {"head_dim": 10**12}),
    ],
)
def test_sizes_that_the_weights_cannot_have_are_refused_before_the_config_is_used(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = saved(tmp_path, name, **changes)
    key = next(iter(changes))
    for check in (check_model_directory, load_config, load_model):
        with pytest.raises(ModelError, match=f"has {key} .* name a model with its own config"):
            check(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"vocab_size": 10**6, "hidden_size": 10**6}),
        ("llama", {"num_hidden_layers": 900, "intermediate_size": 10**6}),
        ("gpt2", {"n_positions": 10**6}),
        ("moe", {"num_experts": 9000, "moe_intermediate_size": 10**6}),
    ],
)
def test_sizes_that_are_too_large_together_are_refused_before_memory_is_taken(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="name a model with its own config"):
        load_model(saved(tmp_path, name, **changes))


def test_a_model_beyond_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, "llama")
    monkeypatch.setattr("ofmu.models.described_size._memory", lambda: 1000.0)
    with pytest.raises(ModelError, match=r"GiB, and this machine has .* name a smaller model"):
        load_model(folder)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 10**9},
        {"intermediate_size": 10**9},
        {"hidden_size": 10**12, "intermediate_size": 10**12},
        {"hidden_size": 2**16, "intermediate_size": 2**18, "num_layers": 100},
    ],
)
def test_a_model_from_scratch_beyond_the_memory_is_refused(sizes: dict[str, int]) -> None:
    tokenizer = train_tokenizer(["a b c"], 300)
    with pytest.raises(ModelError, match=r"lower .*sizes"):
        build_model(ScratchModelConfig(**sizes), tokenizer, seed=0)


def test_a_classifier_beyond_the_memory_is_refused() -> None:
    with pytest.raises(ModelError, match=r"lower .*sizes"):
        build_classifier(ResNetConfig(hidden_sizes=(10**9, 10**9, 10**9)), ["a", "b"], seed=0)


def test_a_check_takes_no_memory_and_leaves_the_random_state(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(before, torch.random.get_rng_state())
