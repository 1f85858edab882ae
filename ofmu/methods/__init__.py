"""Unlearning methods, one file each, behind one contract: trained, searched and scored by the same code.

A method of the user's own is a subclass of :class:`ofmu.methods.base.Method` in a module of theirs, registered by
the same decorator and named in the config as ``method: {name: mine, module: my_package.my_method}``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from ofmu.errors import ConfigError, nearest_name
from ofmu.io.plugins import import_users_module

if TYPE_CHECKING:
    from ofmu.methods.base import Context, Method
    from ofmu.run_config import MethodConfig

MethodT = TypeVar("MethodT")

BUILT_IN = (
    "ofmu",
    "gradascent",
    "graddiff",
    "klmin",
    "npo",
    "simnpo",
    "dpo",
    "idk",
    "rmu",
    "undial",
    "wga",
    "satimp",
    "ceu",
    "pdu",
    "blur",
    "finetune",
    "randomlabels",
    "salun",
    "influence",
    "boundaryexpand",
    "boundaryshrink",
    "l1sparse",
)
"""In the order of the documentation's table; each is the module ``ofmu.methods.<name>``."""

_REGISTERED: dict[str, type[Method[Any]]] = {}


def register(name: str) -> Callable[[type[MethodT]], type[MethodT]]:
    """Make a method known by ``name``, which a config's ``method.name`` then selects."""

    def keep(method: type[MethodT]) -> type[MethodT]:
        method.name = name  # type: ignore[attr-defined]
        _REGISTERED[name] = method  # type: ignore[assignment]
        return method

    return keep


def method_class(name: str, module: str | None = None) -> type[Method[Any]]:
    """Return the class registered under ``name``, importing the module that registers it.

    Raises:
        ConfigError: there is no such method, or ``module`` cannot be imported or registers no such name.
    """
    if name in BUILT_IN:
        import_module(f"ofmu.methods.{name}")
    elif module is not None:
        _import_users(name, module)
    if name not in _REGISTERED:
        raise ConfigError(f"Unknown method '{name}' in method.name: {nearest_name(name, [*BUILT_IN, *_REGISTERED])}")
    return _REGISTERED[name]


def build_method(context: Context[Any], settings: MethodConfig) -> Method[Any]:
    """Return a run of the method that ``settings`` belongs to.

    Raises:
        ConfigError: the method does not work on this kind of task.
    """
    chosen = method_class(settings.name, settings.module)
    if context.task.kind not in chosen.tasks:
        kinds = " and ".join(sorted(chosen.tasks))
        raise ConfigError(f"The method '{settings.name}' works on {kinds} tasks, and this is {context.task.kind}")
    if settings.saliency_fraction < 1:
        from ofmu.methods.saliency import hold_unsalient_weights

        hold_unsalient_weights(context, settings.saliency_fraction, settings.batch_size)
    return chosen(context, settings)


def _import_users(name: str, module: str) -> None:
    import_users_module(module, "method.module")
    if name not in _REGISTERED:
        raise ConfigError(f"method.module '{module}' registers no method '{name}': decorate its class with @register")
