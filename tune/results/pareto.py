"""Fronts, hypervolume and knee of finished points. Plain functions on arrays: no Ray, no Optuna."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tune.space.objectives import WORST, Direction

Points = npt.NDArray[np.float64]


def as_costs(values: Sequence[Sequence[float]] | Points, directions: Sequence[Direction]) -> Points:
    """Return the points, one per row, with every objective to be minimised."""
    signs = np.array([1.0 if direction == "min" else -1.0 for direction in directions])
    costs: Points = np.asarray(values, dtype=np.float64).reshape(-1, len(signs)) * signs
    return costs


def front_mask(costs: Points) -> npt.NDArray[np.bool_]:
    """Return which rows no other row dominates (is at least as low everywhere and lower somewhere).

    Equal rows do not dominate each other: all of them are kept; so is a row with NaN, which nothing compares with.
    Time grows with rows × front (two objectives: with rows alone, but for sorting), memory with rows.
    """
    mask = np.array(np.isnan(costs).any(axis=1))
    order = np.lexsort(costs.T[::-1])
    order = order[~mask[order]]
    # In lexical order, no row is dominated by a later one.
    mask[order] = (_sorted_front if costs.shape[1] == 2 else _front_by_scans)(costs[order])
    return mask


def _sorted_front(costs: Points) -> npt.NDArray[np.bool_]:
    """Return the front of rows in lexical order, two objectives: those lower in the second than all before."""
    is_new = np.ones(len(costs), dtype=bool)
    is_new[1:] = (costs[1:, 0] != costs[:-1, 0]) | (costs[1:, 1] != costs[:-1, 1])
    lowest_before = np.append(np.inf, np.minimum.accumulate(costs[:, 1]))[:-1]
    kept = (costs[:, 1] < lowest_before)[is_new]
    return np.array(kept[np.cumsum(is_new) - 1])


def _front_by_scans(costs: Points) -> npt.NDArray[np.bool_]:
    """Return the front of rows in lexical order: the first of those left is of the front, and sends others away."""
    mask = np.zeros(len(costs), dtype=bool)
    left = np.arange(len(costs))
    while len(left):
        # Column by column: numpy takes many times as long over a row's few entries at a time.
        columns, first = costs[left].T, costs[left[0]]
        mask[left[np.logical_and.reduce([column == own for column, own in zip(columns, first, strict=True)])]] = True
        left = left[np.logical_or.reduce([column < own for column, own in zip(columns, first, strict=True)])]
    return mask


class GrowingFront:
    """The front of points that arrive one by one: the rows that :func:`front_mask` keeps of all so far."""

    def __init__(self, objectives: int) -> None:
        self.costs: Points = np.empty((0, objectives))
        """One row per member, in the order of arrival."""
        self.names: list[int] = []
        """What the members were called."""

    def add(self, name: int, costs: Points) -> list[int]:
        """Take in one point, shape (objectives,); return the names of those that are no members for it.

        They are the members that it dominates, or its own name where a member dominates it.
        """
        below, above = np.any(self.costs < costs, axis=1), np.any(self.costs > costs, axis=1)
        if np.any(below & ~above):
            return [name]
        stay = (below | ~above).tolist()
        left = [member for member, stays in zip(self.names, stay, strict=True) if not stays]
        self.costs = np.vstack((self.costs[stay], costs))
        self.names = [*(member for member, stays in zip(self.names, stay, strict=True) if stays), name]
        return left


def reference_point(objectives: Sequence[str], costs: Points, directions: Sequence[Direction]) -> Points:
    """Return the corner that hypervolume is measured from, in costs.

    It is each objective's worst possible value; for an unbounded one, such as seconds, the worst value seen.
    """
    worst = []
    for column, (name, direction) in enumerate(zip(objectives, directions, strict=True)):
        bound = WORST.get(name)
        if bound is not None:
            worst.append(bound if direction == "min" else -bound)
        else:
            worst.append(float(costs[:, column].max()) if len(costs) else 0.0)
    return np.array(worst, dtype=np.float64)


def hypervolume(costs: Points, reference: Points) -> float:
    """Return the volume between the points' front and ``reference`` for one, two or three objectives, exactly.

    Points that are not below the reference everywhere add nothing. Three objectives: slices along the last one.
    """
    inside = costs[(costs < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if costs.shape[1] == 1:
        return float(reference[0] - inside.min())
    if costs.shape[1] == 2:
        return _area(inside, reference)
    inside = inside[front_mask(inside)]
    inside = inside[np.argsort(inside[:, 2], kind="stable")]
    tops = np.append(inside[1:, 2], reference[2])
    heights = tops - inside[:, 2]
    return float(
        sum(
            height * _area(inside[: index + 1, :2], reference[:2]) for index, height in enumerate(heights) if height > 0
        )
    )


def _area(points: Points, reference: Points) -> float:
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    area, ceiling = 0.0, float(reference[1])
    for x, y in ordered:
        if y < ceiling:
            area += (float(reference[0]) - float(x)) * (ceiling - float(y))
            ceiling = float(y)
    return area


def knee_index(costs: Points) -> int:
    """Return the row of a front that lies furthest below the chord between ideal and nadir's extremes.

    Each objective is scaled to 0 (the front's best) … 1 (its worst); the chord is then Σx = 1, in three objectives
    the plane, and the knee has the least Σx. A tie goes to the later row, so that the untouched target, always
    the first trial, wins none.

    Raises:
        ValueError: the front is empty.
    """
    if not len(costs):
        raise ValueError("An empty front has no knee")
    low, high = costs.min(axis=0), costs.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    sums = np.round(((costs - low) / span).sum(axis=1), 12)
    return int(np.flatnonzero(sums == sums.min())[-1])
