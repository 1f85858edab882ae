"""Models that cannot be trained, or are not whole, are refused; and a saved model is the model that was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fixed_weight_models import model_of
from ofmu.cli.main import main
from ofmu.errors import ModelError
from ofmu.models.files import check_model_directory
from ofmu.models.hub import cached_directory, local_directory
from ofmu.models.language import load_model, save_model
from ofmu.models.scratch import train_tokenizer
from ofmu.models.weight_stream import WeightStream, write_weights
from ofmu.models.weights import check_written
from ofmu.preflight import check_inputs
from ofmu.run_config import UnlearnConfig

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 300,
}  # fmt: skip
TOKENIZER = train_tokenizer(["a b c"] * 3, 280)


def llama(**settings: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **settings))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(llama(), TOKENIZER, tmp_path / "model")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def quantise(tensors: dict[str, torch.Tensor]) -> None:
    """Store the projections as fp8 in blocks of 32x32, as DeepSeek does."""
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name]
        blocks = weight.reshape(weight.shape[0] // 32, 32, weight.shape[1] // 32, 32)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        tensors[name] = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale


FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic", "fmt": "e4m3"}


def test_a_quantised_source_is_refused_before_anything_starts(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(saved, quantise)
    change_config(saved, quantization_config=FP8)
    sentence = rf"{saved} is quantised, and quantised weights cannot be trained \(.*quantization_config \(fp8\)\)"
    for load in (check_model_directory, load_model, lambda path: local_directory(str(path)), cached_directory):
        with pytest.raises(ModelError, match=sentence):
            load(saved)
    target = {"path": str(saved), "is_target": True}
    for sections in (
        {"model": {"path": str(saved)}},
        {"model": target, "reference": {"source": "none"}},
        {"model": {"path": "org/name", "is_target": True, "base": str(saved)}},
        {"reference": {"source": "model", "path": str(saved)}},
    ):
        with pytest.raises(ModelError, match=sentence):
            check_inputs(UnlearnConfig.model_validate(sections))
    for arguments in (["unlearn", f"model.path={saved}", "--output", str(tmp_path / "run")], ["evaluate", str(saved)]):
        assert main(arguments) == 1
        errors = capsys.readouterr().err.splitlines()
        assert [line for line in errors if "is quantised" in line] == [errors[-1]]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_quantised_weights_without_a_config_are_refused(saved: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(saved, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ModelError, match=f"its weight '{name}' has the type [FUI]"):
        load_model(saved)


def test_a_nested_or_foreign_quantisation_and_adapters_are_refused(saved: Path) -> None:
    change_config(saved, text_config={"quantization_config": {"bits": 4}})
    with pytest.raises(ModelError, match="is quantised"):
        check_model_directory(saved)
    change_config(saved, text_config=None, quantization_config=None)
    check_model_directory(saved)
    (saved / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/name"}))
    with pytest.raises(ModelError, match="holds adapters of another model: merge them"):
        load_model(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_are_no_quantisation(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_model(llama().to(dtype), TOKENIZER, tmp_path / "model")
    change_weights(folder, lambda tensors: tensors.update({"mask": torch.ones(2, dtype=torch.uint8)}))
    check_model_directory(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), r"lacks weight 'lm_head\.weight'"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name], r"lacks .* and 8 more"),
        (lambda tensors: tensors.update({"more.weight": torch.ones(2)}), "has the unknown weight 'more.weight'"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}),
            r"another shape for weight 'model\.norm",
        ),
        (lambda tensors: tensors["model.norm.weight"].fill_(float("nan")), r"'model\.norm\.weight' .* is NaN or inf"),
        (lambda tensors: tensors["lm_head.weight"][3, 5].fill_(float("inf")), r"'lm_head\.weight' .* is NaN or inf"),
    ],
)
def test_weights_that_are_not_whole_are_an_error(
    saved: Path, change: Callable[[Any], Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change_weights(saved, change)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("names", [{"model_type": "gpt2"}, {"model_type": "qwen3"}, {"num_hidden_layers": 3}])
def test_a_config_of_another_architecture_is_an_error(saved: Path, names: dict[str, Any]) -> None:
    change_config(saved, **names)
    with pytest.raises(ModelError, match="names the architecture"):
        load_model(saved)


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", 7]
)
def test_an_index_that_points_outside_is_refused(saved: Path, name: Any) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors", "model.norm.weight": name}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in (check_model_directory, load_model):
        with pytest.raises(ModelError, match="outside of the model's directory"):
            load(saved)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=300, n_positions=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "experts": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)),
    "bf16": lambda: AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("given", [False, True])
def test_a_saved_model_reloads_to_its_logits(tmp_path: Path, name: str, given: bool) -> None:
    model = MODELS[name]().eval()
    parameters = {name: weight.detach().clone() for name, weight in model.named_parameters()} if given else None
    folder = save_model(model, TOKENIZER, tmp_path / "model", weights=parameters)
    ids = torch.tensor([[1, 2, 3, 4]])
    loaded = load_model(folder, dtype=model.dtype).eval()
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_weights_of_a_model_that_an_engine_rounds_are_loaded_without_rounding(tmp_path: Path) -> None:
    model = llama()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ids = torch.tensor([[1, 2, 3, 4]])
    logits = model.eval()(input_ids=ids).logits
    folder = save_model(model.to(torch.bfloat16), TOKENIZER, tmp_path / "model", weights=weights)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded(input_ids=ids).logits, logits)


@pytest.mark.parametrize("name", ["llama", "experts"])
def test_a_save_that_loses_something_is_an_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    folder = save_model(model, TOKENIZER, tmp_path / "model")
    before = load_file(folder / "model.safetensors")
    save = type(model).save_pretrained

    def break_after(harm: Callable[[Path], None]) -> Callable[..., None]:
        def saved_and_broken(self: Any, place: Path, **options: Any) -> None:
            save(self, place, **options)
            harm(place)

        return saved_and_broken

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[max(tensors)].view(-1)[0] += 2**-12

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop("model.norm.weight")

    for harm, words in (
        (lambda place: change_weights(place, change), "weight '.*' differs"),
        (lambda place: change_weights(place, lose), "'model.norm.weight' is missing|values in place of"),
        (lambda place: change_config(place, rms_norm_eps=0.1), "another rms_norm_eps"),
    ):
        monkeypatch.setattr(type(model), "save_pretrained", break_after(harm))
        with pytest.raises(ModelError, match=words):
            save_model(model, TOKENIZER, folder)
        after = load_file(folder / "model.safetensors")
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert list(tmp_path.iterdir()) == [folder]


SCALAR = "model.layers.1.layer_scalar"


def trained(model: Any) -> WeightStream:
    named = dict(model.named_parameters())
    return WeightStream({name: one.shape for name, one in named.items()}, torch.float32, iter(named.items()))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gemma4_text", "model.layers.0.layer_scalar"),
        ("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias"),
    ],
)
def test_a_save_without_the_buffers_is_an_error(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind, 300)
    with pytest.raises(ModelError, match=f"its weight '{name}' is missing"):
        save_model(model, TOKENIZER, tmp_path / "model", weights=trained(model).collect())
    monkeypatch.setattr("ofmu.models.language.with_fixed_weights", lambda model, weights: weights)
    with pytest.raises(ModelError, match=f"its weight '{name}' is missing") as caught:
        save_model(model, TOKENIZER, tmp_path / "model", weights=trained(model))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_written_model_is_compared_with_every_entry_of_its_state_dict(tmp_path: Path) -> None:
    model = model_of("gemma4_text", 300)
    state = model.state_dict()
    del state["lm_head.weight"]  # tied
    model.save_pretrained(tmp_path, state_dict={})
    shapes = {name: one.shape for name, one in state.items()}
    fingerprints = write_weights(tmp_path, WeightStream(shapes, torch.float32, iter(state.items())))
    check_written(model, tmp_path, fingerprints)

    without = {name: one for name, one in fingerprints.items() if name != SCALAR}
    change_weights(tmp_path, lambda tensors: tensors.pop(SCALAR))
    for known in (fingerprints, without):
        with pytest.raises(ModelError, match=f"its weight '{SCALAR}' is missing"):
            check_written(model, tmp_path, known)
    change_weights(tmp_path, lambda tensors: tensors.update({SCALAR: state[SCALAR] + 1}))
    with pytest.raises(ModelError, match=f"its weight '{SCALAR}' differs"):
        check_written(model, tmp_path, fingerprints)
