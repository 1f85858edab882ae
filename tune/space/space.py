"""What may be searched, in which order it is drawn, and how a draw becomes a run's config."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ofmu.config.files import set_dotted, validate
from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError, nearest_name
from ofmu.run_config import UnlearnConfig

if TYPE_CHECKING:
    from tune.config import Parameter, SearchConfig

Space = Mapping[str, "Parameter"]


def _sections(config: UnlearnConfig) -> dict[str, type[BaseModel]]:
    """Return what can be searched: any other section changes what is prepared, which is done once for all trials."""
    return {"method": type(config.method), "engine": EngineConfig}


def searchable_keys(config: UnlearnConfig) -> list[str]:
    """Return the dotted config keys that a space may name."""
    return [f"{section}.{key}" for section, schema in _sections(config).items() for key in schema.model_fields]


def is_whole(config: UnlearnConfig, key: str, parameter: Parameter) -> bool:
    """Return whether a range is drawn from the whole numbers."""
    if parameter.int is not None:
        return parameter.int
    section, name = key.split(".")
    annotation = _sections(config)[section].model_fields[name].annotation
    return annotation is int or int in typing.get_args(annotation)


def in_order(space: Space) -> list[str]:
    """Return the space's keys with every condition's subject before what depends on it.

    Raises:
        ConfigError: a condition names a key outside the space, or conditions form a circle.
    """
    ordered: list[str] = []
    open_keys: list[str] = []

    def visit(key: str) -> None:
        if key in ordered:
            return
        if key in open_keys:
            circle = " -> ".join([*open_keys[open_keys.index(key) :], key])
            raise ConfigError(f"The conditions in search.space form a circle: {circle}")
        open_keys.append(key)
        for subject in space[key].when:
            if subject not in space:
                hint = nearest_name(subject, space)
                raise ConfigError(f"search.space.{key}: 'when' names '{subject}', which is not searched: {hint}")
            visit(subject)
        open_keys.pop()
        ordered.append(key)

    for key in space:
        visit(key)
    return ordered


def is_active(parameter: Parameter, drawn: Mapping[str, Any]) -> bool:
    """Return whether the parameter's conditions hold; one on an inactive parameter never does."""
    return all(key in drawn and drawn[key] in _as_list(allowed) for key, allowed in parameter.when.items())


def run_config(config: SearchConfig, overrides: Mapping[str, Any]) -> UnlearnConfig:
    """Return the config of one run: the search's shared settings with ``overrides`` set.

    Raises:
        ConfigError: the settings contradict each other.
    """
    mapping = config.shared_settings()
    for key, value in overrides.items():
        set_dotted(mapping, key, value)
    return validate(UnlearnConfig, mapping)


def fixed_values(space: Space) -> dict[str, Any]:
    """Return the unconditional settings that the space holds fixed."""
    return {key: spec.value for key, spec in space.items() if spec.kind == "fixed" and not spec.when}


def refuse_impossible_space(config: SearchConfig) -> None:
    """Raise ConfigError with one sentence for the first part of the space that can make no run."""
    space = config.search.space
    known = searchable_keys(config)
    for key, parameter in space.items():
        if key not in known:
            raise ConfigError(
                f"search.space cannot search '{key}': {nearest_name(key, known)} "
                "(method and engine settings can be searched; others would change what is prepared once for all)"
            )
        _refuse_malformed(config, key, parameter)
    in_order(space)
    if all(parameter.kind == "fixed" for parameter in space.values()):
        raise ConfigError("search.space holds nothing to search: give at least one range or list of choices")
    for key, parameter in space.items():
        conditions = _conditions(space, key)
        for value in _extremes(config, key, parameter):
            run_config(config, {**fixed_values(space), **conditions, key: value})


def _refuse_malformed(config: UnlearnConfig, key: str, parameter: Parameter) -> None:
    place = f"search.space.{key}"
    given = parameter.model_fields_set - {"when"}
    forms = {"choices": {"choices"}, "fixed": {"value"}, "range": {"low", "high", "log", "step", "int"}}
    if given - forms[parameter.kind] or not given or (parameter.kind == "range" and not {"low", "high"} <= given):
        raise ConfigError(f"{place} must be a range (low and high), a list of choices, or one value")
    if parameter.kind != "range":
        return
    low, high = _bounds(parameter)
    if low >= high:
        raise ConfigError(f"{place}: low {low:g} must be below high {high:g}; for one value, write the value alone")
    if parameter.log and low <= 0:
        raise ConfigError(f"{place}: a log scale needs low above 0, not {low:g}")
    if parameter.log and parameter.step is not None:
        raise ConfigError(f"{place}: 'step' cannot be combined with 'log': leave one out")
    if is_whole(config, key, parameter):
        for name, value in (("low", low), ("high", high), ("step", parameter.step or 1)):
            if value != int(value):
                raise ConfigError(f"{place}: {name} {value:g} must be a whole number, as the setting is one")


def _bounds(parameter: Parameter) -> tuple[float, float]:
    if parameter.low is None or parameter.high is None:
        raise ConfigError("A range needs both low and high")
    return parameter.low, parameter.high


def _extremes(config: UnlearnConfig, key: str, parameter: Parameter) -> list[Any]:
    if parameter.kind == "choices":
        return list(parameter.choices or ())
    if parameter.kind == "fixed":
        return [parameter.value]
    return [int(bound) if is_whole(config, key, parameter) else bound for bound in _bounds(parameter)]


def _conditions(space: Space, key: str) -> dict[str, Any]:
    """Return values of other parameters under which ``key`` counts, refusing conditions that never hold."""
    values: dict[str, Any] = {}
    for subject, allowed in space[key].when.items():
        possible = [value for value in _as_list(allowed) if _can_be(space[subject], value)]
        if not possible:
            raise ConfigError(f"search.space.{key}: 'when' asks {subject} to be {allowed!r}, which it never is")
        values |= _conditions(space, subject) | {subject: possible[0]}
    return values


def _can_be(parameter: Parameter, value: Any) -> bool:
    if parameter.kind == "choices":
        return value in (parameter.choices or ())
    if parameter.kind == "fixed":
        return bool(value == parameter.value)
    low, high = _bounds(parameter)
    return isinstance(value, int | float) and low <= value <= high


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
