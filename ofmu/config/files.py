"""Read configs from YAML files, presets and dotted overrides. An error is one sentence."""

from __future__ import annotations

import errno
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ofmu.config.base import Section
from ofmu.config.bounded_yaml import load_yaml
from ofmu.config.renamed import renamed_key_sentence
from ofmu.config.value_words import refusal
from ofmu.errors import ConfigError, nearest_name
from ofmu.io.files import check_regular, looked_for
from ofmu.io.text import HALF_CHARACTER, shell_word

ConfigT = TypeVar("ConfigT", bound=BaseModel)


_MAX_CONFIG_BYTES = 4 * 2**20
_OF_ROWS = {".jsonl": "JSONL", ".ndjson": "JSONL", ".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}
"""Files of rows, by the end of their name. As YAML they would be named by the line at which they stop being YAML."""


def preset_names() -> list[str]:
    """Return the names of the configs that ship with the package."""
    folder = resources.files("ofmu") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def is_preset(source: str | Path) -> bool:
    """Return whether :func:`read_mapping` takes ``source`` for the name of a preset, and not for a path."""
    path = Path(source)
    return not path.suffix and not path.exists()


def read_mapping(source: str | Path) -> dict[str, Any]:
    """Read a YAML file or a preset as a mapping.

    Args:
        source: the path of a YAML file, or the name of a preset.

    Raises:
        ConfigError: the file is missing, is not UTF-8, is not YAML, is not a mapping, or holds a key twice.
    """
    path = Path(source)
    if is_preset(source):
        if str(source) not in preset_names():
            raise ConfigError(f"There is no preset '{source}': {nearest_name(str(source), preset_names())}")
        text = (resources.files("ofmu") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_dir():
        raise ConfigError(_directory_sentence(path))
    else:
        kind = _OF_ROWS.get(path.suffix.lower())
        if kind is not None and path.exists():
            raise ConfigError(
                f"{path} is a {kind} file, and a config is YAML: name a YAML file, and in it this file as data.forget"
            )
        try:
            check_regular(path, _MAX_CONFIG_BYTES)
            # The encoding also accepts the byte order mark that some editors write.
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            fix = "check its owner and mode"
            if error.errno == errno.ENOENT:
                fix = f"check the path, or name a preset ({', '.join(preset_names())})"
            raise ConfigError(f"Cannot read the config {looked_for(path)} ({error.strerror}): {fix}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"The config {path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    mapping = load_yaml(text, f"The config {source}") or {}
    if HALF_CHARACTER.search(json.dumps(mapping, default=str, ensure_ascii=False, skipkeys=True)):
        raise ConfigError(f"The config {source} has half a character, such as \\ud800: write both halves, or remove it")
    if not isinstance(mapping, dict):
        raise ConfigError(f"The config {source} must hold sections such as 'data:', not a {type(mapping).__name__}")
    return mapping


def _directory_sentence(path: Path) -> str:
    runs = [path, *sorted((folder for folder in path.glob("*/") if _is_search(folder)), reverse=True)]
    run = next((folder for folder in runs if (folder / "config.yaml").is_file()), None)
    if run is None:
        return f"The config {path} is a directory: name a YAML file, or a preset such as quickstart"
    resume = f", or continue the search with: ofmu search --resume {shell_word(run)}" if _is_search(run) else ""
    return f"The config {path} is a directory: name the file {run / 'config.yaml'}{resume}"


def _is_search(folder: Path) -> bool:
    return (folder / "study.log").is_file()


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``mapping`` with ``section.key=value`` entries set. Values are parsed as YAML.

    Raises:
        ConfigError: an entry has no ``=``, or its path runs through a value that is not a section.
    """
    result = deep_copy(mapping)
    for entry in overrides:
        path, sign, value = entry.partition("=")
        if not sign or not path:
            raise ConfigError(f"The override '{entry}' must have the form section.key=value")
        set_dotted(result, path, parse_scalar(value))
    return result


def parse_scalar(text: str) -> Any:
    """Parse an override's value as YAML. YAML 1.1 reads ``1e-3`` as text; this function reads a number."""
    value = load_yaml(text, f"The value '{text}'", text_if_invalid=True)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_dotted(mapping: dict[str, Any], path: str, value: Any) -> None:
    """Set ``mapping['a']['b'] = value`` for the path ``a.b``. Sections that are missing, or None, are created.

    Raises:
        ConfigError: a part of the path is a value and not a section.
    """
    *sections, key = path.split(".")
    for name in sections:
        if mapping.get(name) is None:  # YAML reads a section with nothing below it as null
            mapping[name] = {}
        mapping = mapping[name]
        if not isinstance(mapping, dict):
            raise ConfigError(f"The override '{path}' runs through '{name}', which is a value and not a section")
    mapping[key] = value


_BRANCH = re.compile(r"constrained-\w+|int|bool|literal\[.*\]")


def validate(schema: type[ConfigT], mapping: Mapping[str, Any]) -> ConfigT:
    """Validate ``mapping`` against ``schema``.

    Raises:
        ConfigError: the mapping is invalid. The message is one sentence about the first invalid setting.
    """
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError(_sentence(schema, mapping, error)) from None


def deep_copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested mappings. Other values are shared."""
    return {key: deep_copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _sentence(schema: type[BaseModel], mapping: Mapping[str, Any], error: ValidationError) -> str:
    first, *further = error.errors()
    location = _without_branch(first["loc"])
    path = ".".join(location)
    kind = first["type"]
    if kind == "extra_forbidden":
        known = _section_keys(schema, mapping, location[:-1])
        section = "".join(f"{name}." for name in location[:-1])
        return renamed_key_sentence(path) or (
            f"Unknown config key '{path}': {nearest_name(location[-1], known, section)}"
        )
    if kind == "value_error":
        return first["msg"].removeprefix("Value error, ")
    # A setting that takes one of several types has one error for each.
    of_value = [first, *(other for other in further if _without_branch(other["loc"]) == location)]
    # The place of an entry in a list is no key that one can set.
    *keys, last = location
    key, entry = (".".join(keys), f" in entry {int(last) + 1}") if keys and last.isdecimal() else (path, "")
    return f"Config key '{key}' has the value {shortened(first.get('input'))}{entry}, but {refusal(of_value)}"


def _without_branch(location: Sequence[str | int]) -> list[str]:
    """Return the keys of a location. Pydantic adds the type that it tried, where a setting takes one of several."""
    parts = [str(part) for part in location]
    return parts[:-1] if len(parts) > 1 and _BRANCH.fullmatch(parts[-1]) else parts


def shortened(value: Any) -> str:
    """Return a value for a message, of at most 80 characters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_section(annotation: Any) -> bool:
    """Return whether a field of this annotation is a section with keys of its own."""
    return _section_type(annotation) is not None


def _section_keys(schema: type[BaseModel], mapping: Mapping[str, Any], location: Sequence[str]) -> list[str]:
    for name in location:
        inner = schema.section_schema(name, mapping) if issubclass(schema, Section) else None
        if inner is None:
            field = schema.model_fields.get(name)
            inner = _section_type(field.annotation) if field else None
        if inner is None:
            return list(schema.model_fields)
        schema = inner
    return list(schema.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            section = _section_type(argument)
            if section is not None:
                return section
    return None
