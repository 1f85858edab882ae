"""Draw the settings of one trial from a space."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tune.space.space import draw_settings, is_whole

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from ofmu.run_config import UnlearnConfig
    from tune.space.parameter import Parameter, Space


def draw(trial: BaseTrial, space: Space, base: UnlearnConfig) -> dict[str, Any]:
    """Return the settings that ``trial`` suggests, by dotted key: see :func:`tune.space.space.draw_settings`."""
    return draw_settings(space, lambda key, parameter: _suggest(trial, base, key, parameter))


def _suggest(trial: BaseTrial, base: UnlearnConfig, key: str, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        return trial.suggest_categorical(key, parameter.choices)
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if is_whole(base, key, parameter):
        step = int(parameter.step or 1)
        return trial.suggest_int(key, int(low), int(high), step=step, log=parameter.log)
    return trial.suggest_float(key, low, high, step=parameter.step, log=parameter.log)


def drawn_evenly(space: Space, base: UnlearnConfig, generator: random.Random) -> dict[str, Any]:
    """Return settings that are drawn evenly from the space, by dotted key, without a study."""
    return draw_settings(space, lambda key, parameter: _even(parameter, base, key, generator))


def _even(parameter: Parameter, base: UnlearnConfig, key: str, generator: random.Random) -> Any:
    if parameter.choices is not None:
        return generator.choice(parameter.choices)
    low, high = parameter.low or 0.0, parameter.high or 0.0
    drawn = low * (high / low) ** generator.random() if parameter.log else generator.uniform(low, high)
    return round(drawn) if is_whole(base, key, parameter) else drawn
