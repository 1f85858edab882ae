"""Charts of one run: its history, and its cost by phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ofmu.reports.charts import Chart, Line, bar_chart, line_chart

_LABELS = {
    "forget_loss": "forget loss",
    "retain_loss": "retain loss",
    "measured_forget_loss": "L_f of the stop",
    "similarity": "S",
    "phi_norm": "‖∇Φ‖",
    "forget_gradient_norm": "‖g_f‖",
    "retain_gradient_norm": "‖g_r‖",
    "outer_norm": "‖outer direction‖",
    "direction_norm": "‖direction‖",
    "inner_derivative_error": "of ∇Φ",
    "outer_derivative_error": "of the outer direction",
}
_CURVES = (
    (
        "losses",
        "Losses",
        "_loss",
        "loss (nats per token)",
        False,
        "Mean losses of each round's minibatches, as the method defines them.",
    ),
    ("similarity", "Similarity of the gradients", "similarity", "S", False, "Cosine of forget and retain gradient."),
    ("norms", "Norms of the gradients", "_norm", "norm", True, "‖∇Φ‖ is the residual of the inner level."),
    (
        "errors",
        "Estimated error of the derivatives",
        "_derivative_error",
        "relative error",
        True,
        "Estimated at the checked steps, relative to the norm of what is computed.",
    ),
)
"""Name, title, end of the fields' names, label of y, whether y is logarithmic, and note of each chart."""
_PHASES = {
    "start_up": "start-up",
    "inner": "inner steps",
    "outer": "outer steps",
    "evaluation": "evaluation",
}


def history_charts(history: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the charts of a run's history. A quantity that the method does not record has no chart."""
    steps = [float(record["outer_step"]) for record in history if _is_number(record.get("outer_step"))]
    if len(steps) != len(history) or not history:
        return
    fields = list(dict.fromkeys(name for record in history for name in record))
    for name, title, ending, y_label, log, note in _CURVES:
        columns = {field: _column(history, field) for field in fields if field.endswith(ending)}
        lines = [
            Line(label=_LABELS.get(field, field.replace("_", " ")), x=steps, y=column)
            for field, column in columns.items()
            if any(value is not None for value in column)
        ]
        if lines:
            yield line_chart(lines, name=name, title=title, note=note, x_label="outer step", y_label=y_label, log=log)


def phase_chart(seconds: Mapping[str, float]) -> Chart:
    """Return the chart of the seconds of each phase."""
    shown = {_PHASES.get(name, name): value for name, value in seconds.items() if value > 0}
    note = "Wall-clock seconds of each phase of this run. The preparation of the models is not part of it."
    return bar_chart(shown, name="phases", title="Time by phase", note=note, x_label="seconds", unit=" s")


def _column(history: Sequence[Mapping[str, Any]], field: str) -> list[float | None]:
    values = (record.get(field) for record in history)
    return [float(value) if value is not None and _is_number(value) else None for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
