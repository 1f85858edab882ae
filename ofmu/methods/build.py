"""Build one run of a method from a config."""

from __future__ import annotations

from typing import Any

from ofmu.errors import ConfigError
from ofmu.methods.base import Context, Method
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_class
from ofmu.methods.retain_subset import with_drawn_retain_rows
from ofmu.methods.saliency import apply_saliency_mask


def build_method(context: Context[Any], config: MethodConfig) -> Method[Any]:
    """Return a run of the method that ``config.name`` names; collective.

    If ``config.saliency_fraction`` is below 1, the engine of the context is restricted to the saliency mask. If
    ``config.retain_share`` is below 1, the method sees only the drawn retain rows.

    Raises:
        ConfigError: the method does not work on this kind of task.
    """
    method = method_class(config.name, config.module)
    if context.task.kind not in method.tasks:
        kinds = " and ".join(sorted(method.tasks))
        raise ConfigError(f"The method '{config.name}' works on {kinds} tasks, but this is a {context.task.kind} task")
    if config.saliency_fraction < 1:
        apply_saliency_mask(context, config.saliency_fraction, config.batch_size)
    if config.retain_share < 1:
        context = with_drawn_retain_rows(context, config)
    return method(context, config)
