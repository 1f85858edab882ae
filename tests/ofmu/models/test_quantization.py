"""A base of 4 bits under adapters, beside NF4 written out from its paper and beside models with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from ofmu import UnlearnConfig, evaluate, unlearn
from ofmu.config.files import validate
from ofmu.engine.config import EngineConfig
from ofmu.engine.footprint import FOUR_BIT
from ofmu.engine.forward_mode import tangent
from ofmu.errors import ConfigError, ModelError
from ofmu.models.config import AdapterConfig
from ofmu.models.language import load_model
from ofmu.models.lora import add_adapters, merge_adapters
from ofmu.models.quantization import (
    FourBitLinear,
    dequantize_model,
    is_quantized,
    quantize_model,
    quantized_layers,
    with_four_bit_layers,
)
from ofmu.plan.plan import make_plan
from ofmu.preflight import check_inputs
from ofmu.preparer import find_target_scores, prepare
from ofmu.reports.model_card import model_card
from ofmu.reports.stored import StoredRun
from ofmu.run_config import override
from ofmu.tasks.language.robustness import _load
from ofmu.testing import tiny_llama
from ofmu.testing.runs import SINGLE_PROCESS, RunSpec, run

LORA = AdapterConfig(kind="lora", rank=3, alpha=6.0, quantization="4bit")
IDS = torch.arange(3, 23).view(2, 10)

# Table of appendix E of arXiv 2305.14314.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], dtype=torch.float64)  # fmt: skip


def nf4(weight: Tensor) -> Tensor:
    """Return a weight after NF4 with exact scales: each value is the nearest of 16 shares of its block's largest."""
    flat = weight.double().flatten()
    rounded = []
    for block in flat.split(64):
        scale = block.abs().max()
        nearest = (block[:, None] / scale - NF4).abs().argmin(1)
        rounded.append(NF4[nearest] * scale)
    return torch.cat(rounded).view(weight.shape)


def changed(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, overrides))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def adapted(base: Any, config: AdapterConfig = LORA) -> tuple[Any, dict[str, Tensor]]:
    """Return a model with adapters that are not 0, equal for each base, and the trainable parameters."""
    add_adapters(base, config, 1)
    generator = torch.Generator().manual_seed(9)
    trainable = {name: weight for name, weight in base.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trainable.values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return base, trainable


def pair() -> tuple[Any, dict[str, Tensor], Any, dict[str, Tensor]]:
    """Return a quantised model with adapters, and a float64 model whose ordinary layers have the same weights."""
    llama = tiny_llama("eager")
    exact = dequantize_model(quantize_model(copy.deepcopy(llama))).double()
    assert not is_quantized(exact)
    return *adapted(quantize_model(llama)), *adapted(exact)


def relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    one, other = (torch.cat([part.detach().double().flatten() for part in parts]) for parts in (found, expected))
    return float((one - other).norm() / other.norm())


def loss_of(forward: Any) -> Tensor:
    result: Tensor = nn.functional.cross_entropy(
        forward(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
    )
    return result


@pytest.mark.parametrize("shape", [(24, 64), (7, 35), (1, 3)])
def test_a_weight_is_nf4_up_to_the_rounding_of_the_scales(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.05
    linear = nn.Linear(shape[1], shape[0])
    linear.weight.data = weight.clone()
    layer = FourBitLinear(linear)
    layer.quantize()
    found, expected = layer.dequantized().double(), nf4(weight)
    # The scales have 8 bits. One value in a thousand may lie between two codes.
    assert relative([found], [expected]) < 0.02
    assert torch.equal(layer.dequantized(torch.float64), found)
    assert torch.equal(layer.dequantized(torch.bfloat16), layer.dequantized().bfloat16())


def test_the_layers_of_the_blocks_are_quantised_and_nothing_else() -> None:
    plain, model = tiny_llama(), quantize_model(tiny_llama())
    found = {name for name, module in model.named_modules() if isinstance(module, FourBitLinear)}
    expected = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert found == expected
    kept = dict(model.named_parameters())
    assert kept.keys() == {name for name, _ in plain.named_parameters() if name.removesuffix(".weight") not in found}
    assert all(torch.equal(kept[name], weight) for name, weight in plain.named_parameters() if name in kept)
    layer = model.model.layers[0].mlp.up_proj
    values = layer.in_features * layer.out_features
    held = sum(buffer.nbytes for name, buffer in layer.named_buffers() if name not in ("scale_code", "offset"))
    assert held == pytest.approx(FOUR_BIT * values, rel=0.01)


def test_logits_and_gradients_are_those_of_ordinary_layers_with_the_same_weights() -> None:
    model, trainable, exact, exact_trainable = pair()
    assert relative([logits(model)], [logits(exact)]) < 1e-6
    assert not relative([logits(model)], [logits(adapted(tiny_llama("eager"))[0])]) < 1e-3, "quantising changes logits"
    gradient = torch.autograd.grad(loss_of(model), list(trainable.values()))
    assert relative(gradient, torch.autograd.grad(loss_of(exact), list(exact_trainable.values()))) < 1e-5


@pytest.mark.slow
def test_exact_products_and_their_derivatives_are_those_of_ordinary_layers() -> None:
    model, trainable, exact, exact_trainable = pair()
    generator = torch.Generator().manual_seed(4)
    direction = {name: torch.randn(weight.shape, generator=generator) for name, weight in trainable.items()}

    def derivatives(model: Any, weights: dict[str, Tensor]) -> list[Sequence[Tensor]]:
        parts: list[Sequence[Tensor]] = [torch.autograd.grad(loss_of(model), list(weights.values()), create_graph=True)]
        for _ in range(2):
            slope = sum((part * direction[name]).sum() for name, part in zip(weights, parts[-1], strict=True))
            assert isinstance(slope, Tensor)
            parts.append(torch.autograd.grad(slope, list(weights.values()), create_graph=True))
        return parts

    found, expected = derivatives(model, trainable), derivatives(exact, exact_trainable)
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-4
    rate, _ = tangent(model, direction, loss_of)
    assert relative(torch.autograd.grad(rate, list(trainable.values())), expected[1]) < 1e-4


def test_a_cast_of_the_model_keeps_the_scales() -> None:
    model = quantize_model(tiny_llama())
    before = [layer.dequantized() for layer in quantized_layers(model)]
    model.bfloat16()
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert all(
        torch.equal(layer.dequantized(), weight) for layer, weight in zip(quantized_layers(model), before, strict=True)
    )
    assert logits(model).dtype == torch.bfloat16


def test_no_dequantised_weight_is_kept_for_the_backward_pass() -> None:
    model, _ = adapted(quantize_model(tiny_llama("eager")))
    shapes = {(layer.out_features, layer.in_features) for layer in quantized_layers(model)}
    kept: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(model)
    assert kept
    assert not shapes & {tuple(shape) for shape in kept} - {tuple(IDS.shape)}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_model_is_quantised_weight_by_weight_as_it_is_read(stored: torch.dtype, tmp_path: Path) -> None:
    tiny_llama().to(stored).save_pretrained(tmp_path)
    streamed = load_model(tmp_path, quantized=True)
    whole = quantize_model(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert torch.equal(logits(streamed), logits(whole))
    assert not any(weight.is_meta for weight in (*streamed.parameters(), *streamed.buffers()))
    assert not load_model(tmp_path).state_dict().keys() - dict(tiny_llama().named_parameters()).keys()


@pytest.mark.slow
def test_saved_sums_have_the_logits_of_the_run(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "target")
    model, trainable = adapted(load_model(tmp_path / "target", quantized=True))
    base = dequantize_model(load_model(tmp_path / "target", quantized=True))
    merge_adapters(base, LORA, {name: weight.detach() for name, weight in trainable.items()}).save_pretrained(
        tmp_path / "merged"
    )
    reloaded = load_model(tmp_path / "merged")
    assert relative([logits(reloaded)], [logits(model)]) < 1e-5
    wrong = merge_adapters(load_model(tmp_path / "target"), LORA, dict(trainable))
    assert relative([logits(wrong)], [logits(model)]) > 1e-3


def test_a_model_without_linear_layers_is_refused() -> None:
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match=r"This gpt2 model has no linear layer of PyTorch.*quantization to none"):
        quantize_model(gpt)


def test_a_model_of_which_little_is_quantised_says_so() -> None:
    model = tiny_llama()
    model.experts = nn.ParameterList([nn.Parameter(torch.zeros(10**6))])
    with pytest.warns(UserWarning, match=r"covers \d+% of the weights of this llama model"):
        with_four_bit_layers(model)


def test_contradicting_settings_are_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs frozen weights.*set model\.adapter\.kind to lora"):
        validate(UnlearnConfig, {"model": {"adapter": {"quantization": "4bit"}}})
    quantized = {"model": {"adapter": {"kind": "lora", "quantization": "4bit"}}}
    with pytest.raises(ConfigError, match=r"set engine\.zero_stage to 2"):
        validate(UnlearnConfig, quantized | {"engine": {"zero_stage": 3}})
    config = validate(UnlearnConfig, quantized)
    check_inputs(config)
    monkeypatch.setattr("ofmu.models.config.find_spec", lambda name: None)
    for start in (check_inputs, prepare):
        with pytest.raises(ConfigError, match=r"pip install 'ofmu\[quantization\]'"):
            start(config)
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'ofmu\[quantization\]'"):
        load_model(tmp_path, quantized=True)
    load_model(tmp_path)


def test_a_stored_config_without_the_key_equals_the_default() -> None:
    assert "quantization" not in AdapterConfig(kind="lora").model_dump()
    assert AdapterConfig.model_validate(LORA.model_dump()) == LORA


@pytest.mark.slow
@pytest.mark.parametrize("name", ["npo", "rmu"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_zero_stages_take_the_steps_of_one_process(name: str, stage: int) -> None:
    spec = RunSpec(method={"name": name, "steps": 3, "lr": 0.01, "batch_size": 4}, adapter=LORA)
    engine = EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu")
    alone, sharded = run(spec), run(spec.with_engine(engine))
    assert alone.parameters.keys() == sharded.parameters.keys()
    assert relative(list(sharded.parameters.values()), list(alone.parameters.values())) < 1e-4
    assert relative(list(alone.parameters.values()), list(alone.start.values())) > 1e-3
    assert spec.engine == SINGLE_PROCESS


@pytest.mark.slow
def test_the_plan_counts_half_a_byte_a_weight_and_the_scales(tiny_mapping: dict[str, Any]) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_layers": 4, "num_heads": 4, "vocab_size": 1024}
    mapping = {**tiny_mapping, "model": {"scratch": shape}, "engine": {"device": "cpu"}}
    lora, quantized = (
        make_plan(changed(mapping, "model.adapter.kind=lora", *more), on_gpu=False)
        for more in ((), ("model.adapter.quantization=4bit",))
    )
    linear = 4 * (4 * 256 * 256 + 3 * 256 * 768)

    def weights(plan: Any) -> float:
        (phase,) = [phase for phase in plan.memory.phases if phase.name == "round"]
        return float(next(part.size for part in phase.components if part.name == "weights"))

    assert weights(lora) - weights(quantized) == pytest.approx(linear * (4 - FOUR_BIT))
    assert pytest.approx(0.5 + 8 / 64 / 8 + 32 / (64 * 256) / 8) == FOUR_BIT
    assert quantized.needed < lora.needed
    assert any("model.adapter.quantization=4bit" in change.overrides for change in lora.candidates())


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["central", "exact", "reverse_over_forward"])
def test_a_run_is_scored_saved_and_evaluated_with_the_quantised_base(
    derivative: str, tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    config = changed(
        tiny_mapping,
        "model.adapter.kind=lora",
        "model.adapter.quantization=4bit",
        f"method.derivative={derivative}",
        "evaluation.kl=true",
    )
    prepared = prepare(config)
    result = unlearn(config, tmp_path, prepared=prepared)
    report = evaluate(result.model_dir, config, reference=prepared.reference_scores)
    for metric, value in report["metrics"].items():
        assert result.metrics[metric] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)), metric
    saved = AutoModelForCausalLM.from_pretrained(result.model_dir)
    target = load_model(prepared.target, quantized=True)
    assert saved.dtype == torch.float32
    assert torch.equal(saved.lm_head.weight, target.lm_head.weight)
    assert "4 bits (NF4)" in model_card(StoredRun(tmp_path))
    # The target's scores are those of the quantised model, under a key of their own.
    plain = changed(tiny_mapping, "model.adapter.kind=lora")
    assert find_target_scores(config) == prepared.target_scores
    assert prepare(plain).target_scores != prepared.target_scores
    assert prepare(plain).reference_scores == prepared.reference_scores
    assert is_quantized(_load(str(prepared.target), config, quantized=True))
