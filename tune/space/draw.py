"""Draw the settings of one trial from a space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune.space.space import in_order, is_active, is_whole

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from ofmu.run_config import UnlearnConfig
    from tune.space.parameter import Parameter, Space


def draw(trial: BaseTrial, space: Space, base: UnlearnConfig) -> dict[str, Any]:
    """Return the settings that ``trial`` suggests, by dotted key. Inactive settings are left out."""
    drawn: dict[str, Any] = {}
    for key in in_order(space):
        parameter = space[key]
        if is_active(parameter, drawn):
            drawn[key] = parameter.value if parameter.kind == "fixed" else _suggest(trial, base, key, parameter)
    return drawn


def _suggest(trial: BaseTrial, base: UnlearnConfig, key: str, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        return trial.suggest_categorical(key, parameter.choices)
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if is_whole(base, key, parameter):
        step = int(parameter.step or 1)
        return trial.suggest_int(key, int(low), int(high), step=step, log=parameter.log)
    return trial.suggest_float(key, low, high, step=parameter.step, log=parameter.log)
