"""Nothing random is left in a model, wherever the config or a module holds the probability."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlavaConfig, MixtralConfig, OPTConfig, OPTForCausalLM

from ofmu.models.language import load_model
from ofmu.models.randomness import disable_randomness_in_config, disable_randomness_in_modules


def opt(**settings: float) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=61,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=64,
        **settings,
    )
    torch.manual_seed(0)
    return OPTForCausalLM(config)


def passes_agree(model: nn.Module) -> bool:
    ids = torch.arange(12).reshape(2, 6)
    model.train()
    outputs = [model(input_ids=ids).logits for _ in range(6)]
    return all(torch.equal(outputs[0], other) for other in outputs)


@pytest.mark.parametrize("settings", [{"layerdrop": 0.5}, {"dropout": 0.3}, {"attention_dropout": 0.3}])
def test_a_loaded_model_is_the_same_at_every_pass(settings: dict[str, float], tmp_path: Path) -> None:
    opt(**settings).save_pretrained(tmp_path)
    assert passes_agree(load_model(tmp_path))


def test_a_model_that_was_built_elsewhere_is_the_same_at_every_pass() -> None:
    model = opt(layerdrop=0.5, dropout=0.3)
    assert not passes_agree(model)
    disable_randomness_in_modules(model)
    assert passes_agree(model)


def test_nested_configs_and_routers_are_reached() -> None:
    config = LlavaConfig(text_config=LlamaConfig(attention_dropout=0.1))
    disable_randomness_in_config(config)
    assert config.text_config.attention_dropout == 0
    routed = MixtralConfig(router_jitter_noise=0.2)
    disable_randomness_in_config(routed)
    assert routed.router_jitter_noise == 0


def test_other_numbers_of_a_config_stay() -> None:
    config, other = OPTConfig(layerdrop=0.5), OPTConfig(layerdrop=0.5)
    disable_randomness_in_config(config)
    changed = {name for name in vars(other) if vars(other)[name] != vars(config)[name]}
    assert changed <= {"layerdrop", "dropout", "attention_dropout", "activation_dropout"}
