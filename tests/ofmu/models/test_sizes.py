from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ofmu.errors import ModelError
from ofmu.models.config import AdapterConfig, ScratchModelConfig
from ofmu.models.lora import add_adapters
from ofmu.models.meta import exact_sizes
from ofmu.models.sizes import read_config, scratch_config, sizes_of

SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "phi3": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "mixtral": {},
    "olmo2": {},
}


def built(config: dict[str, Any]) -> torch.nn.Module:
    arguments = {key: value for key, value in config.items() if key != "model_type"}
    shape = AutoConfig.for_model(config["model_type"], **arguments)
    return AutoModelForCausalLM.from_config(shape)


def weights(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_the_count_is_that_of_the_built_model(name, tied):
    config = {"model_type": name, "tie_word_embeddings": tied, **SHAPE, **OTHERS[name]}
    model, sizes = built(config), exact_sizes(config)
    assert sizes.parameters == weights(model)
    assert sizes.embeddings == model.get_input_embeddings().weight.numel()
    assert (sizes.head == 0) == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert sizes.exact


@pytest.mark.parametrize("modules", ["all_linear", "auto", ("q_proj", "down_proj")])
def test_the_count_of_adapters_is_peft_s(modules):
    config = {"model_type": "llama", **SHAPE}
    model, adapter = built(config), AdapterConfig(kind="lora", rank=5, target_modules=modules)
    add_adapters(model, adapter, 0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sizes_of(config).adapter_parameters(adapter) == trained
    assert sizes_of(config).adapter_parameters(AdapterConfig()) == 0


def test_a_model_from_scratch_is_a_llama():
    config = scratch_config(ScratchModelConfig(vocab_size=300), 64)
    assert sizes_of(config).parameters == weights(built(config))


@pytest.mark.parametrize("name", ["llama", "gemma", "unheard_of"])
def test_any_number_is_answered_at_once(name):
    huge = {"vocab_size": 10**12, "hidden_size": 10**9, "num_hidden_layers": 10**9, "intermediate_size": 10**9}
    started = time.perf_counter()
    sizes = exact_sizes({"model_type": name, "num_attention_heads": 8, **huge})
    assert time.perf_counter() - started < 0.1
    assert sizes.parameters > 10**27


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True])
def test_a_size_that_is_no_count_is_named(value):
    with pytest.raises(ModelError, match="hidden_size"):
        sizes_of({"model_type": "llama", **SHAPE, "hidden_size": value})


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ModelError, match="num_hidden_layers"):
        sizes_of({"hidden_size": 4, "vocab_size": 4})
    (tmp_path / "config.json").write_text("[1")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="not JSON"):
        read_config(tmp_path)
