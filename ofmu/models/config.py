"""The ``model`` section of a config file."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ofmu.config.base import PositiveFloat, PositiveInt, Section
from ofmu.errors import ConfigError

Attention = Literal["auto", "sdpa", "eager"]

Count = Annotated[PositiveInt, Field(le=10_000)]
"""A number of layers or heads. Each layer takes time and memory, however narrow the layer is."""


def check_quantization_package() -> None:
    """Check that the package that quantises weights is there.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.adapter.quantization '4bit' needs the package bitsandbytes, which is missing: "
            "pip install 'ofmu[quantization]', or set it to none"
        )


class ScratchModelConfig(Section):
    """Shape of a Llama that is trained from scratch, with its own byte-level BPE tokenizer."""

    hidden_size: PositiveInt = 64
    """Width of the hidden states. It must be a multiple of twice ``num_heads``."""
    intermediate_size: PositiveInt = 160
    """Width of the feed-forward layers."""
    num_layers: Count = 2
    """Number of decoder layers."""
    num_heads: Count = 4
    """Number of attention heads per layer."""
    vocab_size: Annotated[PositiveInt, Field(le=2**24)] = 512
    """Upper bound on the tokenizer's vocabulary, special tokens included. At least 259."""

    @model_validator(mode="after")
    def _check_heads(self) -> ScratchModelConfig:
        # The rotary embedding of a position turns pairs of a head's values.
        unit = 2 * self.num_heads
        if self.hidden_size % unit:
            raise ValueError(
                f"model.scratch.hidden_size {self.hidden_size} is no multiple of {unit}, twice the number of heads: "
                f"set it to {unit * max(1, round(self.hidden_size / unit))}"
            )
        return self


class ResNetConfig(Section):
    """Shape of a ResNet of Transformers that is trained from scratch on images."""

    embedding_size: PositiveInt = 16
    """Channels after the stem. The stem divides an image's height and width by four."""
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels of each stage. Every stage after the first halves height and width."""
    depths: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 1, 1)
    """Number of layers of each stage. The list is as long as ``hidden_sizes``."""
    layer_type: Literal["basic", "bottleneck"] = "basic"
    """Residual block: two 3×3 convolutions, or a bottleneck of 1×1, 3×3 and 1×1."""

    @model_validator(mode="after")
    def _check_one_depth_per_stage(self) -> ResNetConfig:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"model.resnet has {len(self.hidden_sizes)} hidden_sizes and {len(self.depths)} depths: "
                "give each stage one of both"
            )
        return self


class AdapterConfig(Section):
    """Whether a run updates all weights, or low-rank adapters of a language model's linear layers."""

    added_later: ClassVar[frozenset[str]] = frozenset(("quantization",))

    kind: Literal["none", "lora"] = "none"
    """``none``: all weights are updated. ``lora``: each weight W is frozen, and the layer computes with
    W + (alpha/rank)·BA (Hu et al., arXiv 2106.09685). Only A and B are updated, and B starts at 0. The saved model
    holds the sums, so it is an ordinary model."""
    rank: PositiveInt = 8
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 16.0
    """Numerator of the factor alpha/rank."""
    target_modules: Literal["all_linear", "auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all_linear"
    """Layers that get an adapter. ``all_linear``: every linear layer except the output layer. ``auto``: PEFT's choice
    for the architecture, in general query and value of the attention. A list: layers whose names end in one of its
    entries."""
    quantization: Literal["none", "4bit"] = "none"
    """``4bit``: the frozen weights of the linear layers, except the output layer, have 4 bits (NF4 with double
    quantisation, Dettmers et al., arXiv 2305.14314). They are quantised while the target is loaded, and A and B stay in
    fp32. The run's target is then the quantised model. The saved model holds the dequantised weights plus the adapters
    in fp32, so it answers as the run did. Needs the extra ``quantization``. At ZeRO stage 3: not supported."""

    @model_validator(mode="after")
    def _check_quantised_weights_are_frozen(self) -> AdapterConfig:
        if self.is_quantized and self.kind == "none":
            raise ValueError(
                "model.adapter.quantization '4bit' needs frozen weights, and without adapters all weights are updated: "
                "set model.adapter.kind to lora"
            )
        return self

    @property
    def is_quantized(self) -> bool:
        """Whether the frozen weights have 4 bits."""
        return self.quantization != "none"

    def check_packages(self) -> None:
        """Check that the packages that these settings need are there.

        Raises:
            ConfigError: bitsandbytes is missing.
        """
        if self.is_quantized:
            check_quantization_package()


class ModelConfig(Section):
    """The model that the run starts from."""

    added_later: ClassVar[frozenset[str]] = frozenset(("tokenizer",))

    path: str | None = None
    """Hub name or local directory of a causal language model with its tokenizer, or of an image classifier. None: train
    ``scratch`` (text) or ``resnet`` (images) from random weights."""
    revision: str | None = None
    """Branch, tag or commit of ``path`` on the hub. None: the default branch."""
    tokenizer: str | None = None
    """Hub name or local directory of the tokenizer, for a model that was saved without one. The base model and the
    reference use it too, where they have none. None: every model has its own."""
    scratch: ScratchModelConfig = ScratchModelConfig()
    resnet: ResNetConfig = ResNetConfig()
    is_target: bool = False
    """True: ``path`` is the fine-tuned target. False: preparation trains the target on the forget and retain rows."""
    base: str | None = None
    """Hub name or local directory of the model before fine-tuning; only with ``is_target``. Preparation trains the
    retrained reference from this model, so a given target needs it if ``reference.source`` is ``retrain``. None: set
    ``reference.source`` to ``model``, ``scores`` or ``none``."""
    attention: Attention = "auto"
    """Attention implementation of Transformers. ``auto``: eager if exact derivatives need second derivatives of the
    attention, or if the architecture has no sdpa; else sdpa."""
    adapter: AdapterConfig = AdapterConfig()
    saved_dtype: Literal["source", "fp32"] = "source"
    """Type of a saved language model's weights. ``source``: the type of the target's files. The weights are rounded to
    this type before they are scored. With adapters, and on images: fp32."""

    @model_validator(mode="after")
    def _check_target_has_path(self) -> ModelConfig:
        if self.is_target and self.path is None:
            raise ValueError("model.is_target needs model.path: name the fine-tuned model's directory")
        if self.base is not None and not self.is_target:
            raise ValueError("model.base is read only with model.is_target: name the base model as model.path")
        return self
