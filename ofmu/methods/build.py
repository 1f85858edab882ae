"""Build one run of a method from its settings."""

from __future__ import annotations

from typing import Any

from ofmu.errors import ConfigError
from ofmu.methods.base import Context, Method
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_class
from ofmu.methods.saliency import apply_saliency_mask


def build_method(context: Context[Any], config: MethodConfig) -> Method[Any]:
    """Return a run of the method that ``config`` belongs to.

    Raises:
        ConfigError: the method does not work on this kind of task.
    """
    chosen = method_class(config.name, config.module)
    if context.task.kind not in chosen.tasks:
        kinds = " and ".join(sorted(chosen.tasks))
        raise ConfigError(f"The method '{config.name}' works on {kinds} tasks, but this is a {context.task.kind} task")
    if config.saliency_fraction < 1:
        apply_saliency_mask(context, config.saliency_fraction, config.batch_size)
    return chosen(context, config)
