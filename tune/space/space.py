"""What a search may vary, the order in which settings are drawn, and the run that a draw stands for.

Functions take a space and, where they need one, the base: the config of a run to which the drawn settings are added.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ofmu.config.files import set_dotted, validate
from ofmu.config.renamed import renamed_key_sentence
from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError, nearest_name
from ofmu.io.plugins import check_plugin, plugins_restricted
from ofmu.run_config import UnlearnConfig
from tune.space.parameter import Parameter, Space


def _searchable_sections(base: UnlearnConfig) -> dict[str, type[BaseModel]]:
    """Return the sections of which settings can be searched.

    Any other section changes what the preparation makes, and the preparation runs once for all trials.
    """
    return {"method": type(base.method), "engine": EngineConfig}


_NOT_SEARCHED = ("method.name", "method.module")
"""All trials of a search run one method. A choice of modules would import any module of Python."""
_MAX_BOUND = 1e15
_MAX_STEPS = 1e9
"""Bounds on ranges. Samplers overflow, or loop for ever, on larger ones."""


def searchable_keys(base: UnlearnConfig) -> list[str]:
    """Return the dotted config keys that a space may name."""
    sections = _searchable_sections(base).items()
    keys = [f"{section}.{key}" for section, schema in sections for key in schema.model_fields]
    return [key for key in keys if key not in _NOT_SEARCHED]


def is_whole(base: UnlearnConfig, key: str, parameter: Parameter) -> bool:
    """Return whether a range is sampled as integers."""
    if parameter.int is not None:
        return parameter.int
    section, name = key.split(".")
    annotation = _searchable_sections(base)[section].model_fields[name].annotation
    return annotation is int or int in typing.get_args(annotation)


def in_order(space: Space) -> list[str]:
    """Return the space's keys in an order in which every setting comes after the settings of its conditions.

    Raises:
        ConfigError: a condition names a key outside the space, or conditions form a cycle.
    """
    ordered: list[str] = []
    path: list[str] = []

    def visit(key: str) -> None:
        if key in ordered:
            return
        if key in path:
            cycle = " -> ".join([*path[path.index(key) :], key])
            raise ConfigError(f"The conditions in search.space form a cycle: {cycle}")
        path.append(key)
        for subject in space[key].when:
            if subject not in space:
                hint = renamed_key_sentence(subject) or nearest_name(subject, space)
                raise ConfigError(f"search.space.{key}: 'when' names '{subject}', which is not searched: {hint}")
            visit(subject)
        path.pop()
        ordered.append(key)

    for key in space:
        visit(key)
    return ordered


def is_active(parameter: Parameter, drawn: Mapping[str, Any]) -> bool:
    """Return whether the parameter's conditions hold. A condition on an inactive parameter does not hold."""
    return all(key in drawn and drawn[key] in _as_list(allowed) for key, allowed in parameter.when.items())


def draw_settings(space: Space, choose: Callable[[str, Parameter], Any]) -> dict[str, Any]:
    """Return the settings of one trial, by dotted key.

    An inactive setting has its ``otherwise``. Without one it is left out.

    Args:
        space: the space.
        choose: returns the value of an active setting, given its key and its range or choices.
    """
    drawn: dict[str, Any] = {}
    for key in in_order(space):
        parameter = space[key]
        if is_active(parameter, drawn):
            drawn[key] = parameter.value if parameter.kind == "fixed" else choose(key, parameter)
        elif "otherwise" in parameter.model_fields_set:
            drawn[key] = parameter.otherwise
    return drawn


def run_config(base: UnlearnConfig, overrides: Mapping[str, Any]) -> UnlearnConfig:
    """Return ``base`` with ``overrides`` set, by dotted key.

    Overrides come from a study, which others may have written, so they cannot name modules that ``base`` does not name.

    Raises:
        ConfigError: the settings contradict each other, or name another module of the user than ``base``.
    """
    mapping = base.model_dump(mode="json")
    for key, value in overrides.items():
        set_dotted(mapping, key, value)
    with plugins_restricted("A trial", base.plugins, "search another run directory, or restore its study"):
        config = validate(UnlearnConfig, mapping)
        for module, key in config.plugins.items():
            check_plugin(module, key)
    return config


def reachable_part(space: Space) -> dict[str, Parameter]:
    """Return the space without the settings whose conditions can never hold. Their ``otherwise`` stays, as a value."""
    left = dict(space)
    while True:
        kept: dict[str, Parameter] = {}
        for key, parameter in left.items():
            if _can_hold(parameter, left):
                kept[key] = parameter
            elif "otherwise" in parameter.model_fields_set:
                kept[key] = Parameter(value=parameter.otherwise)
        if kept == left:
            return kept
        left = kept


def _can_hold(parameter: Parameter, space: Space) -> bool:
    return all(
        subject in space and any(_can_be(space[subject], value) for value in _as_list(allowed))
        for subject, allowed in parameter.when.items()
    )


def fixed_values(space: Space) -> dict[str, Any]:
    """Return the settings that the space fixes without a condition."""
    return {key: spec.value for key, spec in space.items() if spec.kind == "fixed" and not spec.when}


def check_space(space: Space, base: UnlearnConfig) -> None:
    """Check that a run can be made from every part of the space.

    Raises:
        ConfigError: one sentence for the first part from which no run can be made.
    """
    known = searchable_keys(base)
    for key, parameter in space.items():
        if key not in known:
            raise ConfigError(_unknown_key_sentence(key, known))
        _check_form(base, key, parameter)
    in_order(space)
    if all(parameter.kind == "fixed" for parameter in space.values()):
        raise ConfigError("search.space holds nothing to search: give at least one range or list of choices")
    for key, parameter in space.items():
        conditions = _conditions(space, key)
        for value in _extremes(base, key, parameter):
            run_config(base, {**fixed_values(space), **conditions, key: value})
        if "otherwise" in parameter.model_fields_set:
            run_config(base, {**fixed_values(space), key: parameter.otherwise})


def _unknown_key_sentence(key: str, known: list[str]) -> str:
    if key in _NOT_SEARCHED:
        return (
            f"search.space cannot search '{key}', since all trials of a search run one method: search with each "
            "method, or use ofmu compare"
        )
    renamed = renamed_key_sentence(key)
    if renamed is not None:
        return f"search.space.{key}: {renamed}"
    return (
        f"search.space cannot search '{key}': {nearest_name(key, known)} "
        "(only method and engine settings can be searched: all trials share one preparation)"
    )


def _check_form(base: UnlearnConfig, key: str, parameter: Parameter) -> None:
    place = f"search.space.{key}"
    given = parameter.model_fields_set - {"when", "otherwise"}
    if "otherwise" in parameter.model_fields_set and not parameter.when:
        raise ConfigError(f"{place}: 'otherwise' is the value where 'when' does not hold: add 'when'")
    forms = {"choices": {"choices"}, "fixed": {"value"}, "range": {"low", "high", "log", "step", "int"}}
    if given - forms[parameter.kind] or not given or (parameter.kind == "range" and not {"low", "high"} <= given):
        raise ConfigError(f"{place} must be a range (low and high), a list of choices, or one value")
    if parameter.kind != "range":
        return
    low, high = _bounds(parameter)
    if low >= high:
        raise ConfigError(f"{place}: low {low:g} must be below high {high:g}; for one value, write only the value")
    step = parameter.step or (high - low)
    if max(-low, high) > _MAX_BOUND or (high - low) / step > _MAX_STEPS:
        raise ConfigError(f"{place}: the range from {low:g} to {high:g} is too wide: narrow it, or use a larger step")
    if parameter.log and low <= 0:
        raise ConfigError(f"{place}: a log scale needs low above 0, not {low:g}")
    if parameter.log and parameter.step is not None:
        raise ConfigError(f"{place}: 'step' cannot be combined with 'log': leave one out")
    if is_whole(base, key, parameter):
        for name, value in (("low", low), ("high", high), ("step", parameter.step or 1)):
            if value != int(value):
                raise ConfigError(f"{place}: {name} {value:g} must be a whole number, because the setting is one")


def _bounds(parameter: Parameter) -> tuple[float, float]:
    if parameter.low is None or parameter.high is None:
        raise ConfigError("A range needs both low and high")
    return parameter.low, parameter.high


def _extremes(base: UnlearnConfig, key: str, parameter: Parameter) -> list[Any]:
    """Return all choices, the fixed value, or both ends of a range."""
    if parameter.kind == "choices":
        return list(parameter.choices or ())
    if parameter.kind == "fixed":
        return [parameter.value]
    return [int(bound) if is_whole(base, key, parameter) else bound for bound in _bounds(parameter)]


def _conditions(space: Space, key: str) -> dict[str, Any]:
    """Return values of other settings for which ``key`` is active.

    Raises:
        ConfigError: a condition can never hold.
    """
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
