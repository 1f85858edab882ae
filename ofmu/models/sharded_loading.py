"""Load a model so that no process ever holds more than its share and one weight.

The model is built with its parameters on the meta device. Each weight is then read from its file, and handed to the
engine, which keeps this rank's piece of it; or the weight is quantised.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from ofmu.models.quantization import FourBitLinear, with_four_bit_layers
from ofmu.models.weights import check_finite

_LARGE_BYTES = 2**30
"""A model of fewer bytes is loaded whole without a word."""
_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Buffers that older files hold, and that models now compute themselves. Transformers ignores them too."""


class ShardWeight(Protocol):
    """Keeps this rank's piece of a weight; collective."""

    @property
    def share(self) -> float:
        """The part of the model that this machine holds."""

    def __call__(self, parameter: nn.Parameter) -> None:
        """Replace the whole weight on every rank by this rank's piece of it."""


class StoredWeights:
    """The weights of a model directory, read one at a time.

    Args:
        directory: a directory with ``model.safetensors``, or with several files and their index.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, torch.Size] = {}
        for file in _weight_files(directory):
            with safe_open(file, framework="pt", backend="pread") as stored:
                for name in stored.keys():  # noqa: SIM118
                    self._files[name] = file
                    self.shapes[name] = torch.Size(stored.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored type. Nothing else of its file is read or mapped."""
        with safe_open(self._files[name], framework="pt", backend="pread") as stored:
            tensor: Tensor = stored.get_tensor(name)
            return tensor


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _FILE).is_file() or not (directory / _INDEX).is_file():
        return [directory / _FILE]
    index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
    return [directory / name for name in sorted(set(index["weight_map"].values()))]


def load_in_shards(
    directory: Path,
    config: Any,
    attention: str,
    dtype: torch.dtype,
    shard: ShardWeight | None,
    *,
    quantized: bool = False,
) -> PreTrainedModel | None:
    """Load a causal language model weight by weight. Every rank calls this function.

    Args:
        directory: the model, whose files every rank sees.
        config: its config.
        attention: the attention implementation of Transformers.
        dtype: the type in which the engine gets the weights.
        shard: keeps this rank's piece of each weight. None: each weight stays whole.
        quantized: the weights of the linear layers are quantised to 4 bits; see :mod:`ofmu.models.quantization`.

    Returns:
        The model with all weights. None: the files do not hold exactly the weights of the model under their
        own names, so Transformers must load it. A warning says so if the model is large.

    Raises:
        ModelError: a weight is NaN or infinite; or ``quantized``, and no layer can be quantised.
    """
    model = _without_weights(directory, config, attention, dtype)
    if quantized:
        with_four_bit_layers(model)
    reason = _cannot_be_streamed(model, directory)
    if reason is not None:
        needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
        if needed > _LARGE_BYTES:
            warnings.warn(
                f"Every rank loads all {needed / 2**30:.1f} GiB of the model {directory} before its weights are "
                f"{'quantised' if quantized else 'divided'}, since {reason}",
                stacklevel=2,
            )
        return None
    stored = StoredWeights(directory)
    for names, places in _parameters(model):
        name = next(name for name in names if name in stored.shapes)
        parameter = nn.Parameter(stored.read(name).to(dtype), requires_grad=_parameter(*places[0]).requires_grad)
        check_finite(name, parameter, directory)
        for module, attribute in places:
            module._parameters[attribute] = parameter
            if attribute == "weight" and isinstance(module, FourBitLinear):
                module.quantize()
        if shard is not None:
            shard(parameter)
    buffers = dict(model.named_buffers())
    for name in model.state_dict().keys() & buffers.keys():
        buffers[name].data.copy_(stored.read(name))
    return _finished(model, directory)


def _without_weights(directory: Path, config: Any, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    # Transformers changes the config that it builds a model from.
    config = copy.deepcopy(config)
    config.name_or_path = str(directory)
    with _parameters_on_meta(), torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=dtype, trust_remote_code=False
        )
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put every new parameter on the meta device as soon as a module registers it. Buffers stay real.

    A model that is built on the meta device has no values in its buffers, such as the frequencies of rotary embeddings.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # A parameter that is on the meta device already may be tied to another module's.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _parameters(model: nn.Module) -> Iterator[tuple[list[str], list[tuple[nn.Module, str]]]]:
    """Yield the names of each parameter, which are several if it is tied, and the modules that have it."""
    names: dict[int, list[str]] = defaultdict(list)
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                names[id(parameter)].append(f"{prefix}.{attribute}" if prefix else attribute)
                places[id(parameter)].append((module, attribute))
    # The lists are complete before the first parameter is replaced, whose id a new parameter could get.
    yield from list(zip(names.values(), places.values(), strict=True))


def _parameter(module: nn.Module, attribute: str) -> nn.Parameter:
    parameter = module._parameters[attribute]
    assert parameter is not None
    return parameter


def _cannot_be_streamed(model: PreTrainedModel, directory: Path) -> str | None:
    """Return a clause that says why the weights cannot be read one by one; None: they can."""
    if get_model_conversion_mapping(model, add_legacy=False):
        return f"Transformers stores a {model.config.model_type} under other names than its weights have"
    if getattr(model.config, "transformers_weights", None):
        return "its config.json names a file of weights"
    try:
        stored = dict(StoredWeights(directory).shapes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError):
        return "its files cannot be read"  # Transformers says why
    ignored = [*_OLD_BUFFERS, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    needed = {name: buffer.shape for name, buffer in model.named_buffers() if name in model.state_dict()}
    for names, [(module, attribute), *_] in _parameters(model):
        found = [name for name in names if name in stored]
        if len(found) != 1:
            return f"its files hold {'two copies of the tied' if found else 'no'} weight '{names[0]}'"
        needed[found[0]] = _parameter(module, attribute).shape
    for name, shape in needed.items():
        if stored.pop(name, None) != shape:
            return f"its files hold no weight '{name}' of the shape {tuple(shape)}"
    unknown = [name for name in stored if not any(re.search(pattern, name) for pattern in ignored)]
    return f"its files hold the unknown weight '{unknown[0]}'" if unknown else None


def _finished(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Do what ``from_pretrained`` does after the weights: read the generation config, and leave the training mode."""
    if model.can_generate():
        try:
            generation = GenerationConfig.from_pretrained(directory)
        except OSError:
            generation = GenerationConfig.from_pretrained(
                directory, config_file_name="config.json", _from_model_config=True
            )
        model.generation_config = generation
    model.eval()
    return model
