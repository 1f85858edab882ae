"""Models on PyTorch's meta device: shapes without weights, so that any size takes no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ofmu.errors import ModelError, OfmuError
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from ofmu.models.randomness import disable_randomness_in_config
from ofmu.models.sizes import LinearLayer, ModelSizes, sizes_of

MAX_PARAMETERS = 10**13
"""No model with more weights is built, not even on the meta device, whose tensors have at most 2⁶³ bytes."""
_MAX_COUNT = 4096
"""Largest number of experts or of other repeated modules in a config that is built."""
_MAX_DEPTH = 128
"""Number of blocks up to which all are built where the blocks may differ."""
_NOT_ARGUMENTS = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map")


def build_meta_model(
    config: Mapping[str, Any],
    depth: int,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    adapter: AdapterConfig | None = None,
) -> nn.Module:
    """Build the model of a ``config.json``, with another number of blocks, on the meta device.

    Args:
        config: the content of ``config.json``.
        depth: number of blocks.
        attention: an attention implementation that Transformers knows.
        dtype: the type of the weights.
        adapter: adapters to add.

    Raises:
        ConfigError: the adapters fit no layer.
        ModelError: Transformers does not know the architecture, or cannot build it from these numbers.
    """
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"The model's config.json names the unknown architecture '{model_type}': name another model")
    try:
        shape = AutoConfig.for_model(model_type, **_with_depth(config, depth))
        disable_randomness_in_config(shape)
        with torch.device("meta"):
            model: nn.Module = _from_config(shape, attention, dtype)
            if adapter is not None and adapter.kind != "none":
                add_adapters(model, adapter, 0)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, AssertionError) as error:
        if isinstance(error, OfmuError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"The model's config.json cannot be built ({reason}): save the model again") from error
    return model


def _from_config(shape: Any, attention: str, dtype: torch.dtype) -> Any:
    try:
        return AutoModelForCausalLM.from_config(shape, attn_implementation=attention, dtype=dtype)
    except ValueError:  # some architectures have eager attention only
        return AutoModelForCausalLM.from_config(shape, attn_implementation="eager", dtype=dtype)


def trained_shapes(config: Mapping[str, Any], adapter: AdapterConfig) -> dict[str, torch.Size] | None:
    """Return the shapes of the trained weights of a ``config.json``, by name. None: the model is too large to build.

    Raises:
        ConfigError: the adapters fit no layer.
        ModelError: the config is incomplete, or Transformers cannot build the model.
    """
    sizes = sizes_of(config)
    if not _can_be_built(config, sizes) or sizes.layers > _MAX_DEPTH:
        return None
    model = build_meta_model(config, sizes.layers, adapter=adapter)
    return {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}


def exact_sizes(config: Mapping[str, Any]) -> ModelSizes:
    """Return the numbers of weights that a config states, by building the model where its architecture asks for it.

    Raises:
        ModelError: the config is incomplete, or Transformers cannot build the model.
    """
    sizes = sizes_of(config)
    if sizes.exact or not _can_be_built(config, sizes):
        return sizes
    if sizes.layers <= _MAX_DEPTH:
        return _counted(config, build_meta_model(config, sizes.layers), sizes.layers, 0)
    one, two = (build_meta_model(config, depth) for depth in (1, 2))
    block = _parameters(two) - _parameters(one)
    return _counted(config, one, sizes.layers, block)


def _counted(config: Mapping[str, Any], model: nn.Module, layers: int, block: int) -> ModelSizes:
    """Return the sizes of a built model. ``block``: weights of a block that was not built; 0: all were built."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    embedding = int(embeddings.weight.numel())
    head = 0 if output is None or output.weight is embeddings.weight else int(output.weight.numel())
    inside, linears = 0, list[LinearLayer]()
    for name, module in model.named_modules():
        if name.split(".")[-1].isdigit() and name.count(".") <= 3:
            inside += sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.Linear) and module is not output:
            linears.append(LinearLayer(name.rpartition(".")[2], module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            linears.append(LinearLayer(name.rpartition(".")[2], module.nx, module.nf))
    total = _parameters(model)
    built = layers if not block else 1
    layer = block or inside // built
    return ModelSizes(
        model_type=str(config.get("model_type")),
        layers=layers,
        layer=layer,
        embeddings=embedding,
        head=head,
        other=total - embedding - head - layer * built,
        linears=tuple(linears[: max(1, len(linears) // built)]),
        exact=not block,
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _with_depth(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Return a config with ``depth`` blocks. Lists with one entry per block are cut."""
    layers = sizes_of(config).layers
    arguments = {key: value for key, value in config.items() if key not in _NOT_ARGUMENTS}
    for key, value in arguments.items():
        if isinstance(value, list) and len(value) == layers:
            arguments[key] = value[:depth]
    names = [key for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if key in config]
    return arguments | dict.fromkeys(names, depth)


def _can_be_built(config: Mapping[str, Any], sizes: ModelSizes) -> bool:
    return sizes.parameters <= MAX_PARAMETERS and _largest_count(config) <= _MAX_COUNT


def _largest_count(config: Mapping[str, Any]) -> int:
    counts = [value for key, value in config.items() if "expert" in key and isinstance(value, int)]
    return max(counts, default=0)
