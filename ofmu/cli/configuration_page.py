"""The documentation page of all config keys, made from the schema: ``python -m ofmu.cli.configuration_page``."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ofmu.config.base import MAX_SIZE
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import BUILT_IN, method_class

HEAD = """# Configuration

Made by `python -m ofmu.cli.configuration_page` from the schema. Every key can stand in a YAML file, and every key can
be set on the command line as `section.key=value`. An unknown key is refused with the nearest valid key. None is `null`
in YAML. If the command line names another method, a warning names the settings of the file that this method does not
have, and they are left out. Those of a preset are left out without a warning. Method settings with formulas and
sources: [methods.md](methods.md).
"""
_COLUMNS = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"


def page() -> str:
    """Return the page as Markdown."""
    # Imported here: ofmu.cli imports tune and cluster inside functions alone.
    from tune.compare.config import CompareConfig

    sections = CompareConfig.model_fields
    parts = [HEAD, "## Top level\n\n" + _table(CompareConfig, "", only_scalars=True)]
    for name, field in sections.items():
        schema = _section(field.annotation)
        if schema is not None and name != "method":
            parts.append(_described(name, schema))
    parts.append(_methods())
    return "\n".join(parts)


def _methods() -> str:
    text = _described("method", MethodConfig)
    for name in BUILT_IN:
        own = {key: field for key, field in method_class(name).Config.model_fields.items() if key != "name"}
        rows = list(_rows({k: f for k, f in own.items() if k not in MethodConfig.model_fields}, "method."))
        text += f"\n### `method.name: {name}`\n\n" + (_COLUMNS + "".join(rows) if rows else "No settings of its own.\n")
    return text


def _described(name: str, schema: type[BaseModel]) -> str:
    summary = _plain(schema.__doc__)
    text = f"## `{name}`\n\n{summary}\n\n{_table(schema, f'{name}.', only_scalars=True)}"
    for key, field in schema.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            about = _plain(field.description or inner.__doc__)
            text += f"\n### `{name}.{key}`\n\n{about}\n\n{_table(inner, f'{name}.{key}.')}"
    return text


def _table(schema: type[BaseModel], prefix: str, *, only_scalars: bool = False) -> str:
    fields = {
        key: field
        for key, field in schema.model_fields.items()
        if not (only_scalars and _section(field.annotation) is not None)
    }
    return _COLUMNS + "".join(_rows(fields, prefix)) if fields else ""


def _rows(fields: Mapping[str, FieldInfo], prefix: str) -> Iterator[str]:
    for key, field in fields.items():
        meaning = _plain(field.description).replace("|", "\\|")
        yield f"| `{prefix}{key}` | {_type_text(field)} | {_default_text(field)} | {meaning} |\n"


def _plain(docstring: str | None) -> str:
    """Return a docstring on one line, in Markdown."""
    text = " ".join((docstring or "").split()).replace("``", "`")
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) or default in ({}, [], ()):
        return "empty"
    if isinstance(default, str):
        return f"`{default!r}`" if default != default.strip() or "\n" in default else f"`{default}`"
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def _type_text(field: FieldInfo) -> str:
    bounds = [text for item in field.metadata if (text := _bound_text(item))]
    return ", ".join([_name(field.annotation), *bounds]).replace("|", "\\|")


def _bound_text(item: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = {sign: getattr(item, name) for name, sign in signs.items() if hasattr(item, name)}
    return ", ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound != MAX_SIZE)


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = [text for item in arguments[1:] for text in _annotated_bounds(item)]
        return (", " if len(bounds) > 1 else " ").join([_name(arguments[0]), *bounds])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        return " or ".join("None" if argument is type(None) else _name(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "date": "date"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def _annotated_bounds(item: Any) -> list[str]:
    metadata = item.metadata if isinstance(item, FieldInfo) else [item]
    return [text for each in metadata if (text := _bound_text(each))]


if __name__ == "__main__":
    print(page(), end="")
