"""Switch off what makes a network random in training mode: dropout, dropped layers, and noise in routers.

Finite differences and double backward compare several passes, so every pass must see the same network.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

_RANDOM = re.compile("drop|jitter|noise")
"""Part of the names under which Transformers keeps a probability or the size of a noise."""


def disable_randomness_in_config(config: PreTrainedConfig) -> None:
    """Set every probability and every noise of a config to 0, in nested configs too."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            disable_randomness_in_config(value)
        elif is_random(name, value):
            setattr(config, name, 0.0)


def disable_randomness_in_modules(model: nn.Module) -> None:
    """Set every probability and every noise of the model's modules to 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if is_random(name, value):
                setattr(module, name, 0.0)


def is_random(name: str, value: Any) -> bool:
    """Return whether a setting is a probability or a noise that is not 0."""
    return isinstance(value, float) and value != 0 and may_be_random(name)


def may_be_random(name: str) -> bool:
    """Return whether a setting of this name is a probability or a noise, if it is a float."""
    return _RANDOM.search(name) is not None
