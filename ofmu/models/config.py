"""The ``model`` section of a config file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ofmu.config.base import PositiveFloat, PositiveInt, Section


class ScratchModelConfig(Section):
    """Shape of a Llama that is trained from scratch, with a byte-level BPE tokenizer of its own."""

    hidden_size: PositiveInt = 64
    intermediate_size: PositiveInt = 160
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    vocab_size: PositiveInt = 512
    """Upper bound on the tokenizer's vocabulary, special tokens included."""


class ResNetConfig(Section):
    """Shape of a transformers ResNet that is trained from scratch on images."""

    embedding_size: PositiveInt = 16
    """Channels after the stem, which quarters an image's height and width."""
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels of each stage; every stage after the first halves height and width."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 1)
    """Layers of each stage."""
    layer_type: Literal["basic", "bottleneck"] = "basic"

    @model_validator(mode="after")
    def _as_many_depths_as_sizes(self) -> ResNetConfig:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"model.resnet has {len(self.hidden_sizes)} hidden_sizes and {len(self.depths)} depths: "
                "give each stage one of both"
            )
        return self


class AdapterConfig(Section):
    """Whether all weights are unlearned, or low-rank additions to the linear layers of a language model."""

    kind: Literal["none", "lora"] = "none"
    """``lora``: the weights W stay, and W + (alpha/rank)·BA is unlearned by A and B alone, B starting at 0 (Hu et
    al., arXiv 2106.09685); what is saved are the sums, an ordinary model."""
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: Literal["all_linear", "auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all_linear"
    """``all_linear``: every linear layer but the output layer; ``auto``: those that PEFT names for the architecture,
    as a rule the attention's query and value; or the ends of the layers' names."""


class ModelConfig(Section):
    """Where the model comes from."""

    path: str | None = None
    """Hub name or local directory of a causal LM with its tokenizer, or of an image classifier where the data are
    images; None trains ``scratch``, or ``resnet``, from nothing."""
    revision: str | None = None
    scratch: ScratchModelConfig = ScratchModelConfig()
    resnet: ResNetConfig = ResNetConfig()
    is_target: bool = False
    """True: ``path`` already is the fine-tuned target. False: preparation fine-tunes it on forget + retain."""
    base: str | None = None
    """With ``is_target``: the model before fine-tuning, from which the retrain reference is trained."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """``auto``: eager where exact derivatives need a second derivative of attention, sdpa otherwise."""
    adapter: AdapterConfig = AdapterConfig()

    @model_validator(mode="after")
    def _target_needs_a_path(self) -> ModelConfig:
        if self.is_target and self.path is None:
            raise ValueError("model.is_target needs model.path: name the fine-tuned model's directory")
        if self.base is not None and not self.is_target:
            raise ValueError("model.base is read only with model.is_target: name the base model as model.path")
        return self
