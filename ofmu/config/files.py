"""Reading configs: YAML files, presets, dotted overrides, and one-sentence errors for what is wrong in them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ofmu.errors import ConfigError, nearest_name
from ofmu.run_config import MethodConfig, method_settings

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def preset_names() -> list[str]:
    """Return the names of the configs that ship with the package."""
    folder = resources.files("ofmu") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_mapping(source: str | Path) -> dict[str, Any]:
    """Read a YAML file, or a preset by its name, as a mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    path = Path(source)
    if not path.suffix and not path.exists():
        if str(source) not in preset_names():
            raise ConfigError(f"There is no preset '{source}': {nearest_name(str(source), preset_names())}")
        text = (resources.files("ofmu") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_dir():
        raise ConfigError(_directory_sentence(path))
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"Cannot read the config {path}: {error.strerror}") from error
    try:
        mapping = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        problem = str(error).replace("\n", " ")
        raise ConfigError(f"The config {source} is not valid YAML: {problem}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"The config {source} must hold sections such as 'data:', not a {type(mapping).__name__}")
    return mapping


def _directory_sentence(path: Path) -> str:
    runs = [path, *sorted((place for place in path.glob("*/") if (place / "study.log").is_file()), reverse=True)]
    run = next((place for place in runs if (place / "config.yaml").is_file()), None)
    if run is None:
        return f"The config {path} is a directory: name a YAML file, or a preset such as quickstart"
    continued = f", or continue the search with: ofmu search --resume {run}" if (run / "study.log").is_file() else ""
    return f"The config {path} is a directory: name the file {run / 'config.yaml'}{continued}"


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``mapping`` with ``section.key=value`` entries set; values are parsed as YAML.

    Naming another method leaves behind what ``mapping`` sets and searches of the one it was written for.

    Raises:
        ConfigError: an entry has no ``=``, its path runs through a value that is not a section, or it names no method.
    """
    result = _deep_copy(mapping)
    named = [entry.partition("=")[2] for entry in overrides if entry.startswith("method.name=")]
    if named:
        _change_method(result, named[-1])
    for entry in overrides:
        path, sign, value = entry.partition("=")
        if not sign or not path:
            raise ConfigError(f"The override '{entry}' must have the form section.key=value")
        set_dotted(result, path, parse_scalar(value))
    return result


def _change_method(mapping: dict[str, Any], name: str) -> None:
    section = mapping.get("method") or {}
    if name == section.get("name", "ofmu"):
        return
    known = method_settings({**section, "name": name}).model_fields
    mapping["method"] = {key: value for key, value in section.items() if key in known} | {"name": name}
    search = mapping.get("search")
    if isinstance(search, dict):
        # a space is made for one method: part of it would search the other one at random rates
        search.pop("space", None)


def parse_scalar(text: str) -> Any:
    """Parse an override's value as YAML, reading ``1e-3`` as the number it is meant to be."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_dotted(mapping: dict[str, Any], path: str, value: Any) -> None:
    """Set ``mapping['a']['b'] = value`` for the path ``a.b``, making sections on the way."""
    *sections, key = path.split(".")
    for name in sections:
        mapping = mapping.setdefault(name, {})
        if not isinstance(mapping, dict):
            raise ConfigError(f"The override '{path}' runs through '{name}', which is a value and not a section")
    mapping[key] = value


def validate(schema: type[ConfigT], mapping: Mapping[str, Any]) -> ConfigT:
    """Validate ``mapping`` against ``schema``.

    Raises:
        ConfigError: one sentence for the first thing that is wrong.
    """
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError(_sentence(schema, mapping, error)) from None


def _sentence(schema: type[BaseModel], mapping: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    path = ".".join(location)
    kind, message = first["type"], first["msg"]
    if kind == "extra_forbidden":
        known = _section_keys(schema, mapping, location[:-1])
        section = "".join(f"{name}." for name in location[:-1])
        return f"Unknown config key '{path}': {nearest_name(location[-1], known, section)}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    given = first.get("input")
    return f"Config key '{path}' has the value {given!r}, but: {message[0].lower()}{message[1:]}"


def _section_keys(schema: type[BaseModel], mapping: Mapping[str, Any], location: Sequence[str]) -> list[str]:
    for name in location:
        field = schema.model_fields.get(name)
        inner = _section_type(field.annotation) if field else None
        if inner is None:
            return list(schema.model_fields)
        schema = method_settings(mapping.get("method")) if issubclass(inner, MethodConfig) else inner
    return list(schema.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            found = _section_type(argument)
            if found is not None:
                return found
    return None


def _deep_copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
