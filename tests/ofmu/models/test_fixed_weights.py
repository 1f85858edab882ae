"""A model that is saved from a stream of its trained weights keeps its buffers and its frozen parameters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from fixed_weight_models import KINDS, differing, fixed_names, model_of, write_source
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.errors import ModelError
from ofmu.models.fixed_weights import with_fixed_weights
from ofmu.models.language import load_model, save_model
from ofmu.models.weight_stream import WeightStream


class NoTokenizer:
    name_or_path = ""

    def save_pretrained(self, directory: Path) -> None:
        """Save nothing."""


def save(model: Any, directory: Path, dtype: torch.dtype = torch.float32, precision: str = "fp32") -> Path:
    config = EngineConfig.model_validate({"backend": "torch", "device": "cpu", "precision": precision})
    engine = build_engine(model, config, CostTracker())
    stream = WeightStream(engine.space.shapes(), dtype, engine.space.gather_parameters())
    tokenizer: Any = NoTokenizer()
    return save_model(model, tokenizer, directory, weights=stream)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("source_dtype", "precision"), [(torch.float32, "fp32"), (torch.float32, "bf16"), (torch.bfloat16, "bf16")]
)
def test_a_saved_model_is_its_source_bit_for_bit(
    kind: str, source_dtype: torch.dtype, precision: str, tmp_path: Path
) -> None:
    source = write_source(kind, tmp_path / "source", dtype=source_dtype)
    model = load_model(source)
    assert fixed_names(model)
    saved = save(model, tmp_path / "saved", source_dtype, precision)
    assert not differing(load_file(saved / "model.safetensors"), load_file(source / "model.safetensors"))
    types = [{name: one.dtype for name, one in load_file(at / "model.safetensors").items()} for at in (saved, source)]
    assert types[0] == types[1]
    for load in (load_model, AutoModelForCausalLM.from_pretrained):
        assert not differing(load(saved).state_dict(), load(source).state_dict())


def test_parts_that_lose_bits_in_the_type_of_the_weights_keep_their_own(tmp_path: Path) -> None:
    source = write_source("gemma4_text", tmp_path / "source")
    stored = load_file(save(load_model(source), tmp_path / "saved", torch.bfloat16) / "model.safetensors")
    assert stored["model.layers.0.layer_scalar"].dtype == torch.float32
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    assert float(stored["model.layers.0.layer_scalar"]) == float(
        load_model(source).state_dict()["model.layers.0.layer_scalar"]
    )


class Parts(nn.Module):
    """Every kind of entry of a state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 2, bias=False)
        self.tied_to_trained = self.trained
        self.frozen = nn.Parameter(torch.tensor([0.5, 0.25]), requires_grad=False)
        self.tied_to_frozen = self.frozen
        self.register_buffer("counts", torch.tensor([2**40, 1]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("exact", torch.tensor([0.1], dtype=torch.float64))
        self.register_buffer("cache", torch.zeros(3), persistent=False)


def trained(model: nn.Module) -> WeightStream:
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    return WeightStream({name: one.shape for name, one in named.items()}, torch.bfloat16, iter(named.items()))


def test_each_entry_comes_once_and_in_a_type_that_holds_it() -> None:
    model = Parts()
    stream = with_fixed_weights(model, trained(model))
    collected = stream.collect()
    assert {name: tensor.dtype for name, tensor in collected.items()} == {
        "trained.weight": torch.bfloat16, "frozen": torch.bfloat16, "counts": torch.int64, "mask": torch.bool,
        "exact": torch.float64,
    }  # fmt: skip
    assert stream.shapes.keys() == collected.keys()
    assert collected["counts"].tolist() == [2**40, 1]
    assert collected["frozen"].tolist() == [0.5, 0.25]


def test_a_frozen_parameter_that_was_set_after_loading_is_saved_as_it_was_set(tmp_path: Path) -> None:
    model: Any = load_model(write_source("pegasus", tmp_path / "source"))
    with torch.no_grad():
        model.model.decoder.embed_positions.weight.fill_(0.125)
    saved = load_model(save(model, tmp_path / "saved"))
    assert saved.state_dict()["model.decoder.embed_positions.weight"].unique().tolist() == [0.125]


def cut(parameter: Any) -> Any:
    """Let a parameter look as ZeRO-3 leaves it."""
    parameter.ds_id, parameter.ds_shape = 0, parameter.shape
    parameter.data = torch.empty(0)
    return parameter


def test_a_sharded_frozen_parameter_comes_from_the_source_or_is_an_error(tmp_path: Path) -> None:
    source = write_source("pegasus", tmp_path / "source")
    name = "model.decoder.embed_positions.weight"
    expected = load_file(source / "model.safetensors")[name]
    model: Any = load_model(source)
    cut(model.model.decoder.embed_positions.weight)
    assert torch.equal(with_fixed_weights(model, trained(model)).collect()[name], expected)
    shutil.rmtree(source)
    with pytest.raises(ModelError, match=f"The frozen weight '{name}' cannot be saved, since the files .*: restore"):
        with_fixed_weights(model, trained(model))


def test_a_sharded_parameter_that_the_architecture_computes_is_left_to_it() -> None:
    model: Any = model_of("pegasus", 300)
    cut(model.model.decoder.embed_positions.weight)
    model._keys_to_ignore_on_load_missing = {"embed_positions"}
    assert not [name for name in with_fixed_weights(model, trained(model)).shapes if "embed_positions" in name]
