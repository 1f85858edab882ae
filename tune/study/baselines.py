"""The two runs every search starts with: the untouched target, and the setting of the method's own paper.

Both may lie outside the searched space, while NSGA-II and GP learn only from trials whose parameters lie in it:
so the study is given the nearest parameters inside the space, and what really ran stands in ``overrides``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ofmu.methods.registry import method_class
from tune.space.space import fixed_values, is_whole

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig
    from tune.config import Parameter, SearchConfig

TARGET = "target"
PAPER = "paper"
SEARCHED = "searched"
KNOWN = "known"
"""A trial of an earlier search, which informs this one's sampler; see :mod:`tune.study.warm_start`."""


def landmark_settings(config: UnlearnConfig) -> dict[str, dict[str, Any]]:
    """Return what the two landmarks set, by role: the method's own two settings, with dotted keys."""
    method = method_class(config.method.name, config.method.module)
    settings = {TARGET: method.no_op_config, PAPER: method.published}
    return {role: {f"method.{key}": value for key, value in given.items()} for role, given in settings.items()}


def overrides_of(role: str, config: SearchConfig, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial really runs: the drawn settings, or a landmark's own."""
    landmarks = landmark_settings(config)
    return {**fixed_values(config.search.space), **landmarks[role]} if role in landmarks else dict(drawn)


def stand_ins(config: SearchConfig) -> dict[str, dict[str, Any]]:
    """Return, per landmark, the parameters inside the space under which the study stores it."""
    base, published = config.shared_settings(), landmark_settings(config)[PAPER]

    def paper(key: str) -> Any:
        section, name = key.split(".")
        return published.get(key, base[section][name])

    searched = {key: spec for key, spec in config.search.space.items() if spec.kind != "fixed"}
    return {
        TARGET: {key: _gentlest(config, key, spec) for key, spec in searched.items()},
        PAPER: {key: _nearest(config, key, spec, paper(key)) for key, spec in searched.items()},
    }


def _gentlest(config: UnlearnConfig, key: str, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        return parameter.choices[0]
    # A high threshold closes the hinge; every other setting does less when it is low.
    bound = parameter.high if key == "method.similarity_threshold" else parameter.low
    return _nearest(config, key, parameter, bound)


def _nearest(config: UnlearnConfig, key: str, parameter: Parameter, value: Any) -> Any:
    if parameter.choices is not None:
        return value if value in parameter.choices else parameter.choices[0]
    low, high = parameter.low or 0.0, parameter.high or 0.0
    inside = min(max(float(value), low), high) if isinstance(value, int | float) else low
    whole = is_whole(config, key, parameter)
    step = parameter.step or (1.0 if whole else None)
    if step is not None and not parameter.log:
        steps = min(round((inside - low) / step), int((high - low) / step + 1e-9))
        inside = low + steps * step
    return round(inside) if whole else inside
