"""How much of a result comes from which retain rows were used, beside how much comes from the seed. No Ray, no files.

Each point of a front runs again on several draws of a share of the retain rows, all at one seed. Their spread stands
beside the spread of the point's runs on all retain rows and several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ofmu.io.text import counted
from ofmu.reports.numbers import MISSING, metric_text
from tune.compare.statistics import Values
from tune.compare.summary import RetainSpread, Summary
from tune.pareto import hypervolume
from tune.rundir.seed_runs import PointRuns

HYPERVOLUME = "hypervolume"


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups: the root of all squared deviations over all degrees of freedom.

    None: no group has two values.
    """
    used = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    if not used:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in used)
    return float(np.sqrt(squares / sum(len(group) - 1 for group in used)))


def retain_spreads(
    points: Sequence[PointRuns], drawn: Sequence[PointRuns], objectives: Sequence[str]
) -> tuple[RetainSpread, ...]:
    """Return one spread per objective, pooled over the points of a method.

    Args:
        points: the runs on all retain rows, one per seed. The draws have the seed of the first.
        drawn: the runs of the same points on draws of the retain rows.
        objectives: the names of the objectives.
    """
    of_trial = {point.trial: point for point in points}
    spreads = []
    for name in objectives:
        by_draw = [_values(point, name) for point in drawn]
        shifts = [
            float(np.mean(values)) - whole
            for point, values in zip(drawn, by_draw, strict=True)
            if values and (whole := _first_value(of_trial[point.trial], name)) is not None
        ]
        spreads.append(
            RetainSpread(
                quantity=name,
                between_draws=pooled_deviation(by_draw),
                between_seeds=pooled_deviation([_values(point, name) for point in points]),
                shift=float(np.mean(shifts)) if shifts else None,
            )
        )
    return tuple(spreads)


def hypervolume_spread(by_seed: Sequence[float], by_draw: Sequence[float]) -> RetainSpread:
    """Return the spread of a method's hypervolume. The draws have the first seed."""
    return RetainSpread(
        quantity=HYPERVOLUME,
        between_draws=pooled_deviation([by_draw]),
        between_seeds=pooled_deviation([by_seed]),
        shift=float(np.mean(by_draw)) - by_seed[0] if by_draw else None,
    )


def hypervolumes_of(costs: Values, reference_point: Values) -> tuple[float, ...]:
    """Return the hypervolume of each draw's runs.

    Args:
        costs: shape (points, draws, objectives). A run without a result is a row of NaN.
        reference_point: shape (objectives,).
    """
    draws = [costs[:, draw] for draw in range(costs.shape[1])]
    return tuple(float(hypervolume(runs[~np.isnan(runs).any(axis=1)], reference_point)) for runs in draws)


def leaders(volumes: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the method of the largest hypervolume in each draw, or on each seed. The first of equal methods counts."""
    names = list(volumes)
    return [max(names, key=lambda name: volumes[name][index]) for index in range(len(volumes[names[0]]))]


def retain_table(summary: Summary) -> list[list[str]]:
    """Return a header and one row of text per method and quantity."""
    share = f"{100 * summary.retain_share:g} %"
    header = ["method", "quantity", "spread over retain rows", "spread over seeds", "ratio", f"change at {share}"]
    rows = [header]
    for method in summary.methods:
        for spread in method.retain_spreads:
            rows.append(
                [
                    method.name,
                    spread.quantity,
                    _text(spread.quantity, spread.between_draws),
                    _text(spread.quantity, spread.between_seeds),
                    MISSING if spread.ratio is None else f"{spread.ratio:.2f}",
                    _text(spread.quantity, spread.shift, signed=True),
                ]
            )
    return rows


def retain_sentences(summary: Summary) -> str:
    """Return whether the result depends on the retain rows, and how to read the table."""
    draws, share = summary.retain_draws, f"{100 * summary.retain_share:g} %"
    by_draw = leaders({method.name: method.retain_hypervolumes for method in summary.methods})
    by_seed = leaders({method.name: method.hypervolumes for method in summary.methods})
    runs = [run for method in summary.methods for point in method.retain_points for run in point.runs]
    failed, broken = sum(run.metrics is None for run in runs), sum(run.violation is not None for run in runs)
    return (
        f"Largest hypervolume: {_counts(by_draw)} over {counted(draws, 'draw')} of the retain rows, and "
        f"{_counts(by_seed)} over {counted(len(by_seed), 'seed')} with all of them. Every chosen point ran again on "
        f"{counted(draws, 'draw')} of {share} of the retain rows, at seed {summary.seeds[0]}; target, reference and "
        "evaluation kept all rows. Spreads are standard deviations, pooled over a method's points. A ratio of about 1 "
        "or less says that the choice of the rows matters no more than the seed. Other rows also mean other "
        "minibatches, so the spread over retain rows contains some of the seed's. The change is that of the mean "
        "against the same points and seed with all retain rows: what fewer rows cost."
        + _left_out(failed, "failed", "failed")
        + _left_out(broken, "violates a constraint", "violate a constraint")
    )


def _left_out(count: int, of_one: str, of_several: str) -> str:
    """Return a sentence on runs that are left out, with a space before it; empty if there are none."""
    verbs = f"{of_one} and is" if count == 1 else f"{of_several} and are"
    return f" {counted(count, 'run')} on a draw {verbs} left out." if count else ""


def _counts(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {names.count(name)} of {len(names)}" for name in dict.fromkeys(names))


def _values(point: PointRuns, name: str) -> list[float]:
    values = [metrics.get(name) for run in point.runs if (metrics := run.valid_metrics) is not None]
    return [value for value in values if value is not None]


def _first_value(point: PointRuns, name: str) -> float | None:
    metrics = point.runs[0].valid_metrics
    return None if metrics is None else metrics.get(name)


def _text(quantity: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return MISSING
    sign = "+" if signed and value >= 0 else ""
    return f"{sign}{metric_text(quantity, value, 3)}"
