"""Pareto fronts, hypervolume and knee as plain functions on arrays. No Ray, no Optuna."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tune.space.objectives import WORST, Direction

Points = npt.NDArray[np.float64]
"""Shape (points, objectives). Named ``costs`` where every objective is to be minimised."""
Violations = npt.NDArray[np.float64]
"""Shape (points,): the sum of a point's violations of constraints. 0 for a feasible point."""


def as_costs(values: Sequence[Sequence[float]] | Points, directions: Sequence[Direction]) -> Points:
    """Return the points, one per row, with every objective to be minimised."""
    signs = np.array([1.0 if direction == "min" else -1.0 for direction in directions])
    costs: Points = np.asarray(values, dtype=np.float64).reshape(-1, len(signs)) * signs
    return costs


def front_mask(costs: Points) -> npt.NDArray[np.bool_]:
    """Return which rows no other row dominates. A row dominates if it is nowhere higher and somewhere lower.

    Equal rows do not dominate each other, so all of them are kept. A row with NaN cannot be compared, and is kept.
    The time is O(rows x front), for two objectives O(rows log rows). The memory is O(rows).
    """
    mask = np.array(np.isnan(costs).any(axis=1))
    mask[next(fronts(costs), [])] = True
    return mask


def fronts(costs: Points) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the indices of the rows that no row dominates, then those of the front of the other rows, and so on.

    The indices of a front are in lexical order of their rows. Rows with NaN are in no front.
    """
    order = np.lexsort(costs.T[::-1])
    order = order[~np.isnan(costs[order]).any(axis=1)]
    front_of = _sorted_front if costs.shape[1] == 2 else _front_by_scans
    while len(order):
        # In lexical order, no row is dominated by a later one.
        mask = front_of(costs[order])
        yield order[mask]
        order = order[~mask]


def _sorted_front(costs: Points) -> npt.NDArray[np.bool_]:
    """Return the front of rows of two objectives in lexical order: rows lower in the second than all rows before."""
    is_new = np.ones(len(costs), dtype=bool)
    is_new[1:] = (costs[1:, 0] != costs[:-1, 0]) | (costs[1:, 1] != costs[:-1, 1])
    lowest_before = np.append(np.inf, np.minimum.accumulate(costs[:, 1]))[:-1]
    kept = (costs[:, 1] < lowest_before)[is_new]
    return np.array(kept[np.cumsum(is_new) - 1])


def _front_by_scans(costs: Points) -> npt.NDArray[np.bool_]:
    """Return the front of rows in lexical order. The first remaining row is on the front; remove what it dominates."""
    mask = np.zeros(len(costs), dtype=bool)
    remaining = np.arange(len(costs))
    while len(remaining):
        # Compare column by column. numpy is many times slower if it reduces over the few entries of each row.
        columns, first = costs[remaining].T, costs[remaining[0]]
        equal = np.logical_and.reduce([column == own for column, own in zip(columns, first, strict=True)])
        mask[remaining[equal]] = True
        remaining = remaining[np.logical_or.reduce([column < own for column, own in zip(columns, first, strict=True)])]
    return mask


def constrained_front_mask(costs: Points, violations: Violations) -> npt.NDArray[np.bool_]:
    """Return the front of the rows that violate the constraints least, which are the feasible rows if there are any.

    This is constrained dominance (Deb et al., IEEE Transactions on Evolutionary Computation 6(2), 2002, section VI): a
    feasible row dominates all others, and of two other rows the one with the smaller violation dominates.

    Args:
        costs: shape (points, objectives).
        violations: shape (points,); 0 for a feasible row.
    """
    mask = np.zeros(len(costs), dtype=bool)
    if len(costs):
        least = np.flatnonzero(violations <= max(0.0, float(violations.min())))
        mask[least] = front_mask(costs[least])
    return mask


class GrowingFront:
    """The front of points that are added one by one.

    It equals :func:`constrained_front_mask` of all points that were added.
    """

    def __init__(self, objectives: int) -> None:
        self.costs: Points = np.empty((0, objectives))
        """One row per member, in the order of addition."""
        self.violation = np.inf
        """The violation of all members, 0 if they are feasible. Infinite before the first point."""
        self.names: list[int] = []
        """The members' names, in the same order."""

    def add(self, name: int, costs: Points, violation: float = 0.0) -> list[int]:
        """Add a point. Return the names of the members that it removes, or its own name if a member dominates it.

        Args:
            name: the point's name.
            costs: shape (objectives,).
            violation: how far the point violates the constraints; 0 for a feasible point.
        """
        if violation > self.violation:
            return [name]
        if violation < self.violation:
            removed, self.names = self.names, [name]
            self.costs, self.violation = costs[None, :].copy(), violation
            return removed
        below, above = np.any(self.costs < costs, axis=1), np.any(self.costs > costs, axis=1)
        if np.any(below & ~above):
            return [name]
        stays = (below | ~above).tolist()
        removed = [member for member, kept in zip(self.names, stays, strict=True) if not kept]
        self.costs = np.vstack((self.costs[stays], costs))
        self.names = [*(member for member, kept in zip(self.names, stays, strict=True) if kept), name]
        return removed


def reference_point(objectives: Sequence[str], costs: Points, directions: Sequence[Direction]) -> Points:
    """Return the hypervolume's reference point as costs, shape (objectives,).

    Each entry is the objective's worst possible value; for an unbounded objective, such as seconds, the worst value
    in ``costs``.
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
    """Return the exact volume between the points' front and ``reference``, for one, two or three objectives.

    Points that are not below the reference in every objective add nothing. Three objectives are cut into slices
    along the last one.
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


def choose_points(costs: Points, reference: Points, count: int) -> list[int]:
    """Return up to ``count`` rows in the order of choice. Each row adds the most hypervolume to the rows before it.

    Greedy subset selection reaches at least 1 − 1/e of the best subset's hypervolume (Nemhauser et al. 1978; for
    hypervolume Guerreiro et al., Evolutionary Computation 24(3), 2016). Rows that add nothing come last, in their
    own order.
    """
    chosen: list[int] = []
    remaining = list(range(len(costs)))
    while remaining and len(chosen) < count:
        volumes = [hypervolume(costs[[*chosen, row]], reference) for row in remaining]
        chosen.append(remaining.pop(int(np.argmax(volumes))))
    return chosen


def knee_index(costs: Points) -> int:
    """Return the row of a front that is furthest below the chord between the front's extremes.

    Each objective is scaled to 0 (the front's best value) ... 1 (the front's worst value). The chord, in three
    objectives a plane, is then sum(x) = 1, and the knee is the row with the least sum. An extreme of the front, which
    is the best in some objective, is the knee only of a front without other rows. Of equal rows the last one wins, so
    that the untouched target, which is always the first trial, is the knee only if it is strictly the best.

    Raises:
        ValueError: the front is empty.
    """
    if not len(costs):
        raise ValueError("An empty front has no knee")
    low, high = costs.min(axis=0), costs.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    sums = np.round(((costs - low) / span).sum(axis=1), 12)
    between = (costs > low).all(axis=1)
    sums[~between & between.any()] = np.inf
    return int(np.flatnonzero(sums == sums.min())[-1])
