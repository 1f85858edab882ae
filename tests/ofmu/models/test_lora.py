"""LoRA: the trainable parameters, the outputs, and the saved sums of weights and adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from ofmu import UnlearnConfig, evaluate, unlearn
from ofmu.config.files import validate
from ofmu.errors import ConfigError
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters, merge_adapters
from ofmu.preparer import prepare
from ofmu.run_config import override
from ofmu.tasks.preparation import Prepared
from ofmu.testing import tiny_llama
from ofmu.testing.language import VOCABULARY

LORA = AdapterConfig(kind="lora", rank=3, alpha=6.0)
IDS = torch.arange(3, 23).view(2, 10)


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    return prepare(tiny_config)


def changed(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, overrides))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def adapted(seed: int = 1) -> tuple[Any, dict[str, Tensor]]:
    """Return a model whose adapters are not 0, and the tensors of the adapters."""
    model = tiny_llama().double()
    add_adapters(model, LORA, seed)
    generator = torch.Generator().manual_seed(9)
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            weights[name] = parameter.detach().clone()
    return model, weights


@pytest.mark.slow
def test_new_adapters_change_no_output_and_are_the_only_trainable_parameters() -> None:
    model, plain = tiny_llama(), tiny_llama()
    random_state = torch.random.get_rng_state()
    add_adapters(model, LORA, seed=1)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(logits(model), logits(plain))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 7 * 2
    assert all(("lora_A" in name or "lora_B" in name) and 3 in p.shape for name, p in trainable.items())
    assert all(float(p.detach().norm()) == 0 for name, p in trainable.items() if "lora_B" in name)


def test_adapters_depend_on_the_seed_only() -> None:
    drawn = []
    for seed, disturbance in ((1, 0), (1, 77), (2, 0)):
        model = tiny_llama()
        torch.manual_seed(disturbance)
        add_adapters(model, LORA, seed)
        drawn.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_without_adapters_the_model_is_unchanged() -> None:
    model = tiny_llama()
    add_adapters(model, AdapterConfig(), seed=1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_merging_adds_the_scaled_product_to_every_linear_weight() -> None:
    model, weights = adapted()
    plain = dict(tiny_llama().double().named_parameters())
    merged = dict(merge_adapters(tiny_llama().double(), LORA, weights).named_parameters())
    assert merged.keys() == plain.keys()
    for name, weight in plain.items():
        down = weights.get(name.replace(".weight", ".lora_A.unlearning.weight"))
        up = weights.get(name.replace(".weight", ".lora_B.unlearning.weight"))
        expected = weight if down is None or up is None else weight + 6.0 / 3 * up @ down
        torch.testing.assert_close(merged[name], expected, rtol=1e-12, atol=1e-12)
    whole = merge_adapters(tiny_llama().double(), LORA, weights)
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-9, atol=1e-9)
    assert (logits(model) - logits(tiny_llama().double())).abs().max() > 0.1


def test_weights_of_other_adapters_are_not_merged() -> None:
    _, weights = adapted()
    weights.pop(next(iter(weights)))
    with pytest.raises(ValueError, match="not those of this model's adapters"):
        merge_adapters(tiny_llama().double(), LORA, weights)


def test_layers_are_chosen_by_name_or_by_the_architecture() -> None:
    def touched(model: Any, targets: Any) -> set[str]:
        add_adapters(model, AdapterConfig(kind="lora", target_modules=targets), seed=0)
        return {name.split(".lora_")[0].split(".")[-1] for name, p in model.named_parameters() if p.requires_grad}

    assert touched(tiny_llama(), "auto") == {"q_proj", "v_proj"}
    assert touched(tiny_llama(), ("down_proj", "k_proj")) == {"down_proj", "k_proj"}
    tiny_gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    plain = copy.deepcopy(tiny_gpt2)
    assert touched(tiny_gpt2, "all_linear") == {"c_attn", "c_proj", "c_fc"}
    assert torch.equal(logits(tiny_gpt2.eval()), logits(plain.eval()))


def test_a_missing_layer_is_named() -> None:
    with pytest.raises(ConfigError, match=r"target_modules \['w9'\] fits no layer of this llama model"):
        add_adapters(tiny_llama(), AdapterConfig(kind="lora", target_modules=("w9",)), seed=0)


RUNS = [
    ("ofmu", "engine.zero_stage=2", "engine.backend=deepspeed"),
    ("ofmu", "engine.backend=torch", "method.derivative=exact"),
    ("npo", "engine.zero_stage=3", "engine.backend=deepspeed"),
    ("rmu", "engine.zero_stage=1", "engine.backend=deepspeed", "engine.gradient_checkpointing=true"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS, ids=lambda case: case[0] + case[1][-2:])
def test_a_saved_model_has_the_scores_of_the_adapted_model(
    case: tuple[str, ...], tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    name, *overrides = case
    mapping = dict(tiny_mapping)
    if name != "ofmu":
        mapping["method"] = {"name": name, "steps": 4, "lr": 3e-3, "batch_size": 4}
    config = changed(mapping, "model.adapter.kind=lora", "model.adapter.rank=4", *overrides)
    result = unlearn(config, tmp_path, prepared=prepared)
    report = evaluate(result.model_dir, config, reference=prepared.reference_scores)["metrics"]
    for metric, value in report.items():
        assert result.metrics[metric] == (value if value is None else pytest.approx(value, rel=1e-4)), metric
    saved = dict(AutoModelForCausalLM.from_pretrained(result.model_dir).named_parameters())
    target = dict(AutoModelForCausalLM.from_pretrained(prepared.target).named_parameters())
    assert saved.keys() == target.keys()
    unchanged = {key for key in target if torch.equal(saved[key], target[key])}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= unchanged
    assert "model.layers.0.mlp.up_proj.weight" not in unchanged


@pytest.mark.slow
def test_in_bf16_the_fp32_masters_of_the_adapters_are_added_to_the_fp32_target(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    mapping = tiny_mapping | {"method": {"name": "graddiff", "steps": 2, "lr": 1e-3, "batch_size": 4}}
    config = changed(mapping, "model.adapter.kind=lora", "engine.precision=bf16")
    result = unlearn(config, tmp_path, prepared=prepared)
    saved = dict(AutoModelForCausalLM.from_pretrained(result.model_dir).named_parameters())
    target = dict(AutoModelForCausalLM.from_pretrained(prepared.target).named_parameters())
    assert torch.equal(saved["lm_head.weight"], target["lm_head.weight"])
    moved = saved["model.layers.0.mlp.up_proj.weight"] - target["model.layers.0.mlp.up_proj.weight"]
    assert 0 < float(moved.detach().norm()) < 0.1


def test_settings_that_contradict_adapters_are_errors() -> None:
    lora = {"model": {"adapter": {"kind": "lora"}}}
    with pytest.raises(ConfigError, match="fp32 weights and compute"):
        validate(UnlearnConfig, lora | {"engine": {"precision": "bf16"}, "method": {"derivative": "central"}})
    images = {"data": {"source": "cifar10"}, "method": {"name": "graddiff"}}
    with pytest.raises(ConfigError, match=r"model\.adapter adapts language models"):
        validate(UnlearnConfig, lora | images)
    with pytest.raises(ConfigError, match=r"model\.adapter.rank"):
        validate(UnlearnConfig, {"model": {"adapter": {"kind": "lora", "rank": 0}}})
