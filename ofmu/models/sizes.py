"""Numbers of weights, computed from the numbers in a model's config. No model is built, and no weight is read.

Python's integers have no bound, so a config that states a billion layers is answered as fast as any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.errors import ModelError
from ofmu.io.files import expanded
from ofmu.models.config import AdapterConfig, ScratchModelConfig
from ofmu.models.files import check_model_directory

KNOWN_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose blocks this file counts exactly. Of another one, the count is an estimate."""
_ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "vocab_size": ("vocab_size",),
}


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of every block."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The numbers of weights of a causal language model, by kind."""

    model_type: str
    layers: int
    """Number of blocks."""
    layer: int
    """Weights of one block."""
    embeddings: int
    """Weights of the input embeddings."""
    head: int
    """Weights of the output layer. 0 if the output layer is tied to the embeddings."""
    other: int
    """Weights outside of blocks, embeddings and output layer."""
    linears: tuple[LinearLayer, ...]
    """The linear layers of one block."""
    exact: bool
    """False: the architecture is unknown here, and the numbers are an estimate."""

    @property
    def parameters(self) -> int:
        """Number of all weights. Tied weights count once."""
        return self.embeddings + self.head + self.other + self.layers * self.layer

    @property
    def linear_parameters(self) -> int:
        """Number of weights of the blocks' linear layers, without biases: those that quantisation covers."""
        return self.layers * sum(linear.inputs * linear.outputs for linear in self.linears)

    @property
    def largest_linear(self) -> int:
        """Number of weights of the blocks' largest linear layer."""
        return max(linear.inputs * linear.outputs for linear in self.linears)

    def adapter_parameters(self, config: AdapterConfig) -> int:
        """Return the number of weights of the adapters: rank·(inputs + outputs) for each adapted linear layer."""
        if config.kind == "none":
            return 0
        modules = config.target_modules
        names = ("q_proj", "v_proj") if modules == "auto" else None if modules == "all_linear" else tuple(modules)
        adapted = [linear for linear in self.linears if names is None or linear.name.endswith(names)]
        return self.layers * sum(config.rank * (linear.inputs + linear.outputs) for linear in adapted)


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the content of ``config.json`` in a local model directory. The directory may lack weights.

    Raises:
        ModelError: the directory holds no model, or its ``config.json`` is no JSON object.
    """
    check_model_directory(path, weights=False)
    file = expanded(path) / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"The file {file} is not JSON: save the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"The file {file} holds no JSON object: save the model again")
    text = content.get("text_config")
    return content if not isinstance(text, dict) or "hidden_size" in content else {**content, **text}


def scratch_config(shape: ScratchModelConfig, max_positions: int) -> dict[str, Any]:
    """Return what ``config.json`` of a model that is trained from scratch holds at most, its vocabulary being full."""
    return {
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": False,
    }


def sizes_of(config: Mapping[str, Any]) -> ModelSizes:
    """Return the numbers of weights that a config states.

    Raises:
        ModelError: the config lacks the width, the depth or the vocabulary, or states one that is no positive integer.
    """
    hidden, layers, vocabulary = (_number(config, name) for name in ("hidden_size", "layers", "vocab_size"))
    heads = _number(config, "heads", default=1)
    model_type = str(config.get("model_type", "unknown"))
    head_width = int(config.get("head_dim") or hidden // heads)
    key_heads = int(config.get("num_key_value_heads") or heads)
    linears = _linears(config, hidden, heads * head_width, key_heads * head_width)
    biases = _biases(config, model_type, linears)
    norms = 2 * hidden + (2 * head_width if model_type == "qwen3" else 0)
    tied = bool(config.get("tie_word_embeddings", model_type not in KNOWN_TYPES))
    experts = max(1, *(int(config.get(name) or 1) for name in ("num_experts", "num_local_experts", "n_routed_experts")))
    dense = sum(linear.inputs * linear.outputs for linear in linears)
    feed_forward = sum(linear.inputs * linear.outputs for linear in linears if _is_mlp(linear))
    positions = 0 if model_type in KNOWN_TYPES else int(config.get("n_positions") or 0) * hidden
    return ModelSizes(
        model_type=model_type,
        layers=layers,
        layer=dense + (experts - 1) * feed_forward + biases + norms,
        embeddings=vocabulary * hidden,
        head=0 if tied else vocabulary * hidden,
        other=hidden + positions,
        linears=linears,
        exact=model_type in KNOWN_TYPES and experts == 1,
    )


def _linears(config: Mapping[str, Any], hidden: int, queries: int, keys: int) -> tuple[LinearLayer, ...]:
    inner = _number(config, "intermediate_size", default=4 * hidden)
    layers = [
        LinearLayer("q_proj", hidden, queries),
        LinearLayer("k_proj", hidden, keys),
        LinearLayer("v_proj", hidden, keys),
        LinearLayer("o_proj", queries, hidden),
        LinearLayer("up_proj", hidden, inner),
        LinearLayer("down_proj", inner, hidden),
    ]
    gated = "intermediate_size" in config and str(config.get("model_type")) not in ("gpt_neox", "opt", "phi")
    return (*layers, LinearLayer("gate_proj", hidden, inner)) if gated else tuple(layers)


def _is_mlp(linear: LinearLayer) -> bool:
    return linear.name in ("up_proj", "down_proj", "gate_proj")


def _biases(config: Mapping[str, Any], model_type: str, linears: tuple[LinearLayer, ...]) -> int:
    outputs = {linear.name: linear.outputs for linear in linears}
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"] if config.get("attention_bias") else []
    if model_type == "qwen2":
        attention = ["q_proj", "k_proj", "v_proj"]
    mlp = [name for name in ("up_proj", "down_proj", "gate_proj") if name in outputs] if config.get("mlp_bias") else []
    return sum(outputs[name] for name in (*attention, *mlp))


def _number(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a positive integer of a config under any of its usual names."""
    for key in _ALIASES[name]:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(
                f"The model's config.json states {key} {value!r}, which is no positive integer: correct it"
            )
        return value
    if default is None:
        raise ModelError(f"The model's config.json states no {_ALIASES[name][0]}: save the model again")
    return default
