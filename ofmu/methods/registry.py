"""The registry of unlearning methods: from a name in a config to a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from ofmu.errors import ConfigError, nearest_name
from ofmu.io.plugins import import_plugin, reads_results_only
from ofmu.methods.config import MethodConfig

if TYPE_CHECKING:
    from ofmu.methods.base import Method

MethodT = TypeVar("MethodT")

BUILT_IN = (
    "ofmu",
    "gradascent",
    "graddiff",
    "klmin",
    "npo",
    "simnpo",
    "dpo",
    "altpo",
    "idk",
    "rmu",
    "undial",
    "wga",
    "satimp",
    "ceu",
    "pdu",
    "blur",
    "hamu",
    "finetune",
    "randomlabels",
    "salun",
    "influence",
    "repselect",
    "boundaryexpand",
    "boundaryshrink",
    "l1sparse",
)
"""The built-in methods, in the order of the documentation's table. Each is the module ``ofmu.methods.<name>``."""

_REGISTERED: dict[str, type[Method[Any]]] = {}


def register(name: str) -> Callable[[type[MethodT]], type[MethodT]]:
    """Return a class decorator that registers a method. A config selects the method by ``method.name``."""

    def add(method: type[MethodT]) -> type[MethodT]:
        method.name = name  # type: ignore[attr-defined]
        _REGISTERED[name] = method  # type: ignore[assignment]
        return method

    return add


def method_class(name: str, module: str | None = None) -> type[Method[Any]]:
    """Import the module that registers ``name``, and return the registered class.

    Where only results are read, a module of the user is not imported: the class is then a stand-in.

    Args:
        name: a built-in method, or a method that ``module`` registers.
        module: importable module of the user.

    Raises:
        ConfigError: there is no such method, or ``module`` cannot be imported or does not register ``name``.
    """
    if name in BUILT_IN:
        import_module(f"ofmu.methods.{name}")
    elif module is not None and reads_results_only():
        stand_in = import_module("ofmu.methods.unimported").UnimportedMethod
        return _REGISTERED.get(name) or type(stand_in.__name__, (stand_in,), {"name": name, "title": name})
    elif module is not None:
        import_plugin(module, "method.module")
        if name not in _REGISTERED:
            raise ConfigError(
                f"method.module '{module}' registers no method '{name}': decorate its class with @register"
            )
    if name not in _REGISTERED:
        raise ConfigError(f"Unknown method '{name}' in method.name: {nearest_name(name, {*BUILT_IN, *_REGISTERED})}")
    return _REGISTERED[name]


def method_config(section: Mapping[str, Any] | None) -> type[MethodConfig]:
    """Return the config class of the method that a ``method`` section names. The default is OFMU.

    Raises:
        ConfigError: there is no such method.
    """
    section = section or {}
    module = section.get("module")
    if module is not None and not isinstance(module, str):
        raise ConfigError("method.module must be the name of a Python module: write text, such as my_package.my_method")
    return method_class(str(section.get("name", "ofmu")), module).Config
