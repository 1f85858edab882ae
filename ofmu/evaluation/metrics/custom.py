"""Custom metrics: the user's functions of the scores. A config names them as ``my_package.my_module:my_function``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ofmu.errors import ConfigError
from ofmu.io.plugins import import_plugin

if TYPE_CHECKING:  # The summary imports SciPy, and configs that only check a metric's name need to load quickly.
    from ofmu.evaluation.metrics.summary import Metrics

ScoresT = TypeVar("ScoresT")

MetricsFunction: TypeAlias = "Callable[[ScoresT, ScoresT | None], Metrics]"
"""From a model's scores, and the reference's scores or None, to the model's metrics."""

CustomMetric = Callable[[Any, Any], float]
"""``function(scores, reference) -> float``.

``scores`` is :class:`ofmu.evaluation.Scores` for text and :class:`ofmu.vision.scores.ImageScores` for images. The
``sets`` of text scores hold one :class:`ofmu.evaluation.scores.RowScores` per row. ``reference`` holds the same scores
of the retrained model, for the forget rows only, or is None. The function must not change its arguments. It must return
the same number for the same scores. Every rank of a worker group calls the function.
"""


def is_custom_metric(name: str) -> bool:
    """Return whether a metric's name has the form ``module:function``."""
    return ":" in name


def load_custom_metric(name: str) -> CustomMetric:
    """Import the function that ``module:function`` names.

    Raises:
        ConfigError: the name has another form, the module cannot be imported, or the module has no such function.
    """
    module, _, function = name.partition(":")
    if not module or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"The metric '{name}' must have the form my_package.my_module:my_function")
    attribute = getattr(import_plugin(module, "the metric's module"), function, None)
    if not callable(attribute):
        raise ConfigError(f"The module '{module}' has no function '{function}', which the metric '{name}' names")
    custom_metric: CustomMetric = attribute
    return custom_metric


def with_custom_metrics(measure: MetricsFunction[ScoresT], names: Sequence[str]) -> MetricsFunction[ScoresT]:
    """Return a function that adds custom metrics, under their names, to the metrics of ``measure``.

    A custom metric that raises, or that returns anything but a finite number, has the value None and a reason. The
    returned function raises ConfigError if :func:`load_custom_metric` does.
    """

    def measure_all(scores: ScoresT, reference: ScoresT | None) -> Metrics:
        metrics = measure(scores, reference)
        values, reasons = dict(metrics.values), dict(metrics.reasons)
        for name in names:
            values[name], reason = _value_and_reason(load_custom_metric(name), scores, reference)
            if reason is not None:
                reasons[name] = reason
        return replace(metrics, values=values, reasons=reasons)

    return measure_all if names else measure


def _value_and_reason(function: CustomMetric, scores: Any, reference: Any) -> tuple[float | None, str | None]:
    try:
        value = function(scores, reference)
    except Exception as error:
        # An error in the user's function must not end the evaluation, so it becomes the reason of a missing metric.
        return None, f"the function raised {type(error).__name__}: {error}"
    if isinstance(value, bool) or not isinstance(value, Real):
        return None, f"the function returned {value!r}, which is a {type(value).__name__} and not a number"
    if not math.isfinite(value):
        return None, f"the function returned {value}, which is not finite"
    return float(value), None
