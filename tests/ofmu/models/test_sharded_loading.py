"""Models that are loaded and saved weight by weight are those that are loaded and saved whole."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fixed_weight_models import write_source
from ofmu.errors import ModelError
from ofmu.models.language import load_model
from ofmu.models.weights import saves_under_other_names, stored_under_other_names
from ofmu.testing import run_script_on_ranks

PROBE = Path(__file__).resolve().parents[2] / "helpers" / "sharded_probe.py"
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
    "max_position_embeddings": 64,
}  # fmt: skip


def models() -> dict[str, Any]:
    """Return small models: tied and untied, with biases, learnt positions, scaled rotary embeddings and odd sizes."""
    torch.manual_seed(0)
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32, "rope_theta": 500000.0}  # fmt: skip
    gpt2 = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=61, n_positions=64)
    return {
        "tied": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=scaled)),
        "half": LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).to(torch.bfloat16),
        "gpt2": GPT2LMHeadModel(gpt2),
        "qwen-lora": Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)),
    }


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_under_zero_3_nothing_differs_from_the_whole_model(tmp_path: Path) -> None:
    for name, model in models().items():
        model.generation_config.temperature = 0.5
        model.generation_config.do_sample = True
        model.save_pretrained(tmp_path / name, max_shard_size="8KB" if name == "gpt2" else "1GB")
    cases = [(str(tmp_path / name), "fp32") for name in models()]
    cases += [(str(tmp_path / name), "bf16") for name in ("tied", "qwen-lora")]
    run_script_on_ranks(PROBE, 3, json.dumps(cases))


class Keep:
    """Keeps whole weights, and counts them."""

    share = 1.0

    def __init__(self) -> None:
        self.kept = 0

    def __call__(self, parameter: nn.Parameter) -> None:
        self.kept += 1


def expect_same(found: Any, expected: Any) -> None:
    for one, other in ((found.state_dict(), expected.state_dict()), map(named_buffers, (found, expected))):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype
            assert torch.equal(tensor, other[name]), name


def named_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())


FAMILIES: dict[str, tuple[Any, Any]] = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, num_key_value_heads=4, head_dim=8)),
    "phi": (PhiForCausalLM, PhiConfig(**SIZES)),
    "bloom": (BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61)),
    "gptj": (GPTJForCausalLM, GPTJConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64, rotary_dim=4)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_the_model_that_transformers_loads(family: str, tmp_path: Path) -> None:
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config)
    model.save_pretrained(tmp_path)
    shard = Keep()
    found = load_model(tmp_path, shard=shard)
    assert shard.kept == len(list(model.parameters()))
    expect_same(found, load_model(tmp_path))
    assert found.config.to_dict() == load_model(tmp_path).config.to_dict()
    assert not found.training


@pytest.mark.parametrize(
    ("kind", "name", "one_by_one"),
    [
        ("pegasus", "model.decoder.embed_positions.weight", True),
        ("ernie4_5_moe", "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias", False),
    ],
)
def test_what_an_architecture_freezes_is_frozen_however_the_model_is_loaded(
    kind: str, name: str, one_by_one: bool, tmp_path: Path
) -> None:
    source, shard = write_source(kind, tmp_path), Keep()
    for model in (load_model(source), load_model(source, shard=shard)):
        assert [name for name, one in model.named_parameters() if not one.requires_grad] == [name]
    assert (shard.kept > 0) is one_by_one


def test_old_files_with_buffers_that_are_now_computed_load_weight_by_weight(tmp_path: Path) -> None:
    models()["half"].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shard = Keep()
    expect_same(load_model(tmp_path, shard=shard), load_model(tmp_path))
    assert shard.kept > 0


def test_weights_under_other_names_are_loaded_whole_with_a_word_if_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).save_pretrained(tmp_path)
    shard = Keep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expect_same(load_model(tmp_path, shard=shard), load_model(tmp_path))
    assert shard.kept == 0
    monkeypatch.setattr("ofmu.models.sharded_loading._LARGE_BYTES", 1000)
    with pytest.warns(UserWarning, match="Every rank loads all 0.0 GiB of the model .* stores a gpt_neox under other"):
        load_model(tmp_path, shard=shard)


@pytest.mark.parametrize(("config", "renamed"), [
    (GPTNeoXConfig(**SIZES), True), (MixtralConfig(**SIZES, num_local_experts=2), True),
    (LlamaConfig(**SIZES), False), (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=61), False),
])  # fmt: skip
def test_the_config_says_whether_files_have_other_names(config: Any, renamed: bool) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert saves_under_other_names(model) is renamed
    stored = config.to_dict() | {"architectures": [type(model).__name__]}
    assert stored_under_other_names(stored) is renamed


def test_tied_weights_that_differ_in_the_files_stay_apart_as_transformers_keeps_them(tmp_path: Path) -> None:
    models()["tied"].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shard = Keep()
    found = load_model(tmp_path, shard=shard)
    assert shard.kept == 0
    assert torch.equal(found.state_dict()["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), r"lacks weight 'lm_head\.weight'"),
        (lambda tensors: tensors.update({"more.weight": torch.ones(2)}), "has the unknown weight 'more.weight'"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "another shape for weight 'model.norm"),
        (lambda tensors: tensors["model.norm.weight"].fill_(float("nan")), "'model.norm.weight' .* is NaN or inf"),
    ],
)
def test_weights_that_are_not_whole_are_the_same_error(
    change: Callable[[Any], Any], words: str, tmp_path: Path
) -> None:
    models()["half"].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path, shard=Keep())


def test_damaged_files_are_the_same_error(tmp_path: Path) -> None:
    models()["half"].save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (content[:-2], content[:100], b""):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        said = []
        for shard in (None, Keep()):
            with pytest.raises(ModelError) as caught:
                load_model(tmp_path, shard=shard)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_a_machine_must_fit_its_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models()["half"].save_pretrained(tmp_path)
    monkeypatch.setattr("ofmu.models.described_size._memory", lambda: 30_000.0)
    shard = Keep()
    with pytest.raises(ModelError, match=r"The model .* takes .* GiB, and this machine has"):
        load_model(tmp_path)
    shard.share = 0.5
    with pytest.raises(ModelError, match=r"This machine.s part of the model .* takes"):
        load_model(tmp_path, shard=shard)
    shard.share = 0.25
    load_model(tmp_path, shard=shard)
    assert shard.kept > 0
