"""One searched setting, and the forms in which a config file may write a space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ofmu.config.base import Section
from ofmu.errors import ConfigError, nearest_name
from ofmu.methods.registry import method_class

Scalar = str | int | float | bool | None
_PARAMETER_KEYS = frozenset({"low", "high", "log", "step", "int", "choices", "value", "when", "otherwise"})

_WHOLE_FORMS = frozenset({"choices", "value"})


class Parameter(Section):
    """One searched setting: a range (low, high), a list of choices, or one fixed value."""

    low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Lower end of a range. The end is part of the range."""
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Upper end of a range. The end is part of the range."""
    log: bool = False
    """Whether a range is sampled on a logarithmic scale."""
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Distance between two values of a range."""
    int: bool | None = None
    """Whether a range is sampled as integers. None: as the setting's own type says."""
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = None
    """The values to choose from."""
    value: Scalar = None
    """The fixed value."""
    when: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """Condition: other searched settings, and the value or values of each for which this setting is sampled."""
    otherwise: Scalar = None
    """The value where the condition does not hold. Left out: the value of the config itself."""

    @model_serializer(mode="wrap")
    def _without_later_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unset fields. A stored space stays readable, and ``value: null`` differs from no value."""
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}

    @property
    def kind(self) -> Literal["range", "choices", "fixed"]:
        """Which of the three forms this parameter has."""
        if self.choices is not None:
            return "choices"
        return "range" if self.low is not None or self.high is not None else "fixed"


Space = Mapping[str, Parameter]
"""The searched settings, by dotted config key."""


def default_space(method: str = "ofmu", module: str | None = None, variant: str | None = None) -> dict[str, Parameter]:
    """Return the space that a method, or a variant of the method, declares for its own settings.

    Raises:
        ConfigError: there is no such method or variant, or ``module`` cannot be imported.
    """
    declared = method_class(method, module)
    if variant is not None and variant not in declared.variants:
        raise ConfigError(
            f"Unknown variant '{variant}' of the method '{method}': {nearest_name(variant, declared.variants)}"
            if declared.variants
            else f"The method '{method}' has no variants: leave '{variant}' out"
        )
    space = declared.search_space(variant)
    return {f"method.{key}": Parameter.model_validate(spec) for key, spec in space.items()}


def flatten_space(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a space with dotted keys. A list becomes ``{'choices': ...}``, a plain value becomes ``{'value': ...}``.

    Dotted overrides on the command line make nested sections. This function merges them with dotted keys.
    """
    flat: dict[str, Any] = {}
    for key, value in space.items():
        name = f"{prefix}{key}"
        if isinstance(value, Parameter):
            flat[name] = value
        elif isinstance(value, Mapping) and "." not in key and not _PARAMETER_KEYS & set(value):
            for inner, spec in flatten_space(value, f"{name}.").items():
                # A plain value or a list replaces a range; a part of a range, such as its low end, is merged.
                merge = isinstance(flat.get(inner), dict) and isinstance(spec, dict) and not _WHOLE_FORMS & set(spec)
                flat[inner] = {**flat[inner], **spec} if merge else spec
        elif isinstance(value, Mapping):
            merge = isinstance(flat.get(name), dict)
            flat[name] = {**flat[name], **value} if merge else dict(value)
        else:
            flat[name] = {"choices": value} if isinstance(value, list) else {"value": value}
    return flat
