"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) as the only trainable parameters of a run.

PEFT adds the adapters to the model in place, so the model keeps its class of Transformers. PEFT freezes all other
parameters. Everything that reads the trainable parameters (vector spaces, gradients, frozen targets, checkpoints) then
reads the adapters only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ofmu.errors import ConfigError
from ofmu.models.config import AdapterConfig

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

_ADAPTER_NAME = "unlearning"


def add_adapters(model: PreTrainedModel, config: AdapterConfig, seed: int) -> None:
    """Add new adapters to ``model``, in place. With ``config.kind`` none, do nothing.

    A depends on ``seed`` only, so A is the same on every rank and after a restart. B is 0, so the outputs of the model
    do not change.

    Raises:
        ConfigError: ``target_modules`` matches no layer, or PEFT names no layers for this architecture.
    """
    if config.kind != "none":
        _inject(model, config, seed)


def merge_adapters(model: PreTrainedModel, config: AdapterConfig, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Add trained adapters to the weights of ``model``, in place, and return the model: W + (alpha/rank)·BA.

    Args:
        model: the target without adapters. The sums have its dtype.
        config: the config that the adapters were made with.
        weights: the tensor of every adapter, by parameter name.

    Raises:
        ValueError: ``weights`` does not hold exactly the parameters of the adapters.
    """
    adapted = _inject(model, config, seed=0)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if parameters.keys() != weights.keys():
        raise ValueError("the weights to merge are not those of this model's adapters")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _inject(model: PreTrainedModel, config: AdapterConfig, seed: int) -> LoraModel:
    # PEFT takes a second to import, and most runs have no adapters.
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    modules = config.target_modules
    targets = {"all_linear": "all-linear", "auto": None}[modules] if isinstance(modules, str) else list(modules)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return LoraModel(model, lora, _ADAPTER_NAME)
        except ValueError as error:
            raise ConfigError(
                f"model.adapter.target_modules {targets or modules} fits no layer of this {model.config.model_type} "
                "model: use 'all_linear', or name its layers"
            ) from error
