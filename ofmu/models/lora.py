"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) as the only parameters that a run moves.

PEFT puts them into the model in place, so its class stays what transformers loaded, and freezes all else: whatever
works on the trainable parameters (vectors, gradients, start models, checkpoints) then covers the adapters alone.
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

_NAME = "unlearning"


def add_adapters(model: PreTrainedModel, config: AdapterConfig, seed: int) -> None:
    """Put fresh adapters into ``model``, or none where ``config`` asks for none.

    A is drawn from ``seed`` alone, the same on every rank and after a restart; B is 0, so that the model computes
    what it did before.

    Raises:
        ConfigError: ``target_modules`` matches no layer, or PEFT names none for this architecture.
    """
    if config.kind != "none":
        _inject(model, config, seed)


def merged(model: PreTrainedModel, config: AdapterConfig, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return ``model``, which is as it was before :func:`add_adapters`, with trained adapters added to its weights.

    Args:
        model: the target, in the dtype in which the sums are to be kept; it is changed in place.
        config: the one that the adapters were made by.
        weights: every adapter's tensor, by parameter name.
    """
    tuner = _inject(model, config, seed=0)
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if own.keys() != weights.keys():
        raise ValueError("the weights to merge are not those of this model's adapters")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    whole: PreTrainedModel = tuner.merge_and_unload()
    return whole


def _inject(model: PreTrainedModel, config: AdapterConfig, seed: int) -> LoraModel:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    chosen = config.target_modules
    targets = {"all_linear": "all-linear", "auto": None}[chosen] if isinstance(chosen, str) else list(chosen)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return LoraModel(model, lora, _NAME)
        except ValueError as error:
            raise ConfigError(
                f"model.adapter.target_modules {chosen} fits no layer of this {model.config.model_type} model: "
                "use 'all_linear', or name its layers"
            ) from error
