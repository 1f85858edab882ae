"""Weights that are written from a stream are those that the safetensors library and Transformers write."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ofmu.models.weight_stream import WeightStream, differing_weight, write_weights


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "é.weight": torch.randn(3, 5), "a": torch.randn(7), "scalar": torch.tensor(-0.0), "none": torch.empty(0, 4),
        "b.bias": torch.randn(2, 2, 2),
    }  # fmt: skip


def stream(values: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> WeightStream:
    return WeightStream({name: value.shape for name, value in values.items()}, dtype, iter(values.items()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_file_has_the_bytes_that_the_library_writes(dtype: torch.dtype, tmp_path: Path) -> None:
    write_weights(tmp_path, stream(tensors(), dtype))
    rounded = {name: value.to(dtype) for name, value in tensors().items()}
    save_file(rounded, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_the_file_has_those_bytes_with_weights_of_several_types_too(tmp_path: Path) -> None:
    mixed = {
        "b.mask": torch.tensor([True, False, True]), "a.mask": torch.tensor([False]), "counts": torch.tensor([2**40]),
        "ids": torch.tensor([1, 2, 3], dtype=torch.int32), "half": torch.ones(3, dtype=torch.float16),
        "short": torch.ones(3, dtype=torch.bfloat16), "double": torch.rand(2, dtype=torch.float64),
        "codes": torch.tensor([1, 2, 3], dtype=torch.uint8), "z": torch.ones(5), "phase": torch.ones(1) * 1j,
    }  # fmt: skip
    shapes = {name: value.shape for name, value in mixed.items()}
    dtypes = {name: value.dtype for name, value in mixed.items()}
    write_weights(tmp_path, WeightStream(shapes, torch.float32, iter(mixed.items()), dtypes))
    save_file(mixed, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_several_files_and_their_index_are_those_of_transformers(tmp_path: Path) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=61)
    )
    model.save_pretrained(tmp_path / "expected", max_shard_size="10KB")
    (tmp_path / "found").mkdir()
    write_weights(tmp_path / "found", stream(dict(model.state_dict())), max_file_bytes=10_000)
    files = sorted(path.name for path in (tmp_path / "expected").glob("model*"))
    assert len(files) > 3
    assert files == sorted(path.name for path in (tmp_path / "found").iterdir())
    for name in files:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name


def test_no_two_weights_are_in_memory_at_once(tmp_path: Path) -> None:
    values = {name: torch.Size((4, 4)) for name in "abcd"}
    alive: list[weakref.ref[torch.Tensor]] = []

    def produced() -> Iterator[tuple[str, torch.Tensor]]:
        for name in values:
            assert not any(one() is not None for one in alive), name
            yield name, made()

    def made() -> torch.Tensor:
        tensor = torch.ones(4, 4)
        alive.append(weakref.ref(tensor))
        return tensor

    write_weights(tmp_path, WeightStream(values, torch.bfloat16, produced()))
    assert len(alive) == 4
    assert len(load_file(tmp_path / "model.safetensors")) == 4


def test_a_changed_byte_and_a_lost_weight_are_found(tmp_path: Path) -> None:
    fingerprints = write_weights(tmp_path, stream(tensors()))
    assert differing_weight(tmp_path, fingerprints) is None
    assert differing_weight(tmp_path, fingerprints | {"more": ""}) == "its weight 'more' is missing"
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert differing_weight(tmp_path, fingerprints) == "its weight 'é.weight' differs"


def test_a_stream_that_does_not_keep_its_word_is_an_error(tmp_path: Path) -> None:
    shapes = {"a": torch.Size((2,)), "b": torch.Size((3,))}
    for given, words in (
        ({"a": torch.ones(2)}, "lacks the weight b"),
        ({"a": torch.ones(3)}, "has a of shape"),
        ({"c": torch.ones(3)}, "has c of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            write_weights(tmp_path, WeightStream(shapes, torch.float32, iter(given.items())))
