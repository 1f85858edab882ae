"""Metrics of the user's own: functions of the scores, named in the config as ``my_package.my_module:my_function``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ofmu.errors import ConfigError
from ofmu.io.plugins import import_plugin

if TYPE_CHECKING:
    from ofmu.evaluation.metrics.summary import Metrics

ScoresT = TypeVar("ScoresT")

Measure: TypeAlias = "Callable[[ScoresT, ScoresT | None], Metrics]"
"""From a model's scores, and those of the reference if there is one, to its metrics."""

ScoreFunction = Callable[[Any, Any], float]
"""``function(scores, reference) -> float``.

``scores`` is what the evaluation found: :class:`ofmu.evaluation.Scores` for text, whose ``sets`` hold one
:class:`ofmu.evaluation.scores.RowScores` per row, or :class:`ofmu.vision.scores.ImageScores` for images. ``reference``
is the same of the retrained model, forget rows alone, or None where there is none. The function must not change them,
and must give the same number for the same scores. Every rank of a worker group calls it.
"""


def is_function_name(name: str) -> bool:
    """Return whether a metric's name has the form ``module:function``."""
    return ":" in name


def score_function(name: str) -> ScoreFunction:
    """Import the function that ``module:function`` names.

    Raises:
        ConfigError: the name has another form, the module cannot be imported, or holds no such function.
    """
    module, _, function = name.partition(":")
    if not module or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"The metric '{name}' must have the form my_package.my_module:my_function")
    found = getattr(import_plugin(module, "the metric's module"), function, None)
    if not callable(found):
        raise ConfigError(f"The module '{module}' has no function '{function}', which the metric '{name}' names")
    function_found: ScoreFunction = found
    return function_found


def with_functions(measure: Measure[ScoresT], names: Sequence[str]) -> Measure[ScoresT]:
    """Return a measure that adds the user's functions, under their names, to what ``measure`` makes.

    A function that raises, or returns anything but a finite number, gives None, and the reason says what it did. The
    returned measure raises ConfigError where a function cannot be found; see :func:`score_function`.
    """

    def measured(scores: ScoresT, reference: ScoresT | None) -> Metrics:
        metrics = measure(scores, reference)
        values, reasons = dict(metrics.values), dict(metrics.reasons)
        for name in names:
            values[name], reason = _value(name, score_function(name), scores, reference)
            if reason is not None:
                reasons[name] = reason
        return replace(metrics, values=values, reasons=reasons)

    return measured if names else measure


def _value(name: str, function: ScoreFunction, scores: Any, reference: Any) -> tuple[float | None, str | None]:
    try:
        value = function(scores, reference)
    except Exception as error:
        # whatever the user's function raises is a missing metric with a reason, like any other metric's
        return None, f"the function raised {type(error).__name__}: {error}"
    if isinstance(value, bool) or not isinstance(value, Real):
        return None, f"the function returned {value!r}, which is a {type(value).__name__} and not a number"
    if not math.isfinite(value):
        return None, f"the function returned {value}, which is not finite"
    return float(value), None
