from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from ofmu.errors import ConfigError
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.rungs import RungScheduler

TWO = {"ks_statistic": "min", "model_utility": "max"}
THREE = {**TWO, "seconds": "min"}
FULL = 4
ONE_RUNG = EarlyStoppingConfig(first_rung=0.5, grace_rounds=1, rung_size=FULL)
ASHA_FIELDS = {"first_rung": 0.9, "grace_rounds": 1, "rung_size": 1}
ASHA = EarlyStoppingConfig(first_rung=0.5, grace_rounds=1, rung_size=1)

small = st.integers(0, 5)
pairs = st.lists(st.tuples(small, small), max_size=14)
factors = st.sampled_from([1.5, 2.0, 3.0, 4.0])


class FakeTrial:
    def __init__(self, trial_id):
        self.trial_id = trial_id


def at_one_rung(rows, directions=TWO, config=ONE_RUNG):
    """Report each row as a new trial at the only rung. Return the scheduler and its answers."""
    scheduler = RungScheduler(directions, config)
    answers = []
    for number, row in enumerate(rows):
        answers.append(scheduler.report(number, 9, dict(zip(directions, row, strict=True)), 10))
    return scheduler, answers


def dominates(one, other):
    """Whether ``one`` is better: the first objective down, the second up, a third down."""
    signs = (1, -1, 1)
    differences = [sign * (a - b) for a, b, sign in zip(one, other, signs, strict=False)]
    return max(differences) <= 0 and min(differences) < 0


@pytest.mark.slow
@given(pairs, st.tuples(small, small), factors, st.integers(1, 5))
def test_a_trial_that_dominates_its_rung_is_never_stopped(rows, newcomer, factor, size):
    best = (min([row[0] for row in rows], default=3) - 1, max([row[1] for row in rows], default=3) + 1)
    config = EarlyStoppingConfig(first_rung=0.9, grace_rounds=1, rung_size=size, reduction_factor=factor)
    scheduler = RungScheduler(TWO, config)
    answers = [
        scheduler.report(number, 9, {"ks_statistic": row[0], "model_utility": row[1]}, 10)
        for number, row in enumerate([*rows, best])
    ]
    assert answers[-1] == "continue"


@pytest.mark.slow
@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=14), st.booleans())
def test_a_member_of_the_rungs_front_is_never_stopped(rows, third):
    directions = THREE if third else TWO
    rows = [row[: len(directions)] for row in rows]
    _, answers = at_one_rung(rows, directions, ASHA)
    for number, row in enumerate(rows):
        if not any(dominates(other, row) for other in rows[:number]):
            assert answers[number] == "continue"


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=1, max_size=14), factors, st.integers(1, 5))
def test_a_trial_dominated_by_all_is_stopped_once_the_rung_is_full(rows, factor, size):
    worst = (max(row[0] for row in rows) + 1, min(row[1] for row in rows) - 1)
    config = EarlyStoppingConfig(first_rung=0.9, grace_rounds=1, rung_size=size, reduction_factor=factor)
    scheduler = RungScheduler(TWO, config)
    for number, row in enumerate([*rows, worst]):
        answer = scheduler.report(number, 9, {"ks_statistic": row[0], "model_utility": row[1]}, 10)
    assert answer == ("stop" if len(rows) >= size else "continue")


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=FULL, max_size=14), st.randoms(use_true_random=False))
def test_the_order_of_earlier_trials_does_not_matter(rows, random):
    *earlier, newcomer = rows
    shuffled = random.sample(earlier, len(earlier))
    assert at_one_rung([*shuffled, newcomer])[1][-1] == at_one_rung(rows)[1][-1]


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=2, max_size=14), st.integers(0, 12))
def test_equal_trials_get_equal_answers_in_either_order(rows, place):
    place %= len(rows) - 1
    rows[place + 1] = rows[place]
    names = list(range(len(rows)))
    swapped = names.copy()
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]

    def answers(order):
        scheduler = RungScheduler(TWO, ASHA)
        return [
            scheduler.report(name, 1, dict(zip(TWO, row, strict=True)), 2)
            for name, row in zip(order, rows, strict=True)
        ]

    assert answers(names) == answers(swapped)


@pytest.mark.slow
@given(
    pairs, st.lists(st.integers(1, 1000), min_size=6, max_size=6), st.sampled_from(["ks_statistic", "model_utility"])
)
def test_a_monotone_rescaling_changes_nothing(rows, steps, rescaled):
    scale = np.cumsum(steps) ** 3 / 7.0 - 40
    column = list(TWO).index(rescaled)
    warped = [tuple(scale[v] if i == column else v for i, v in enumerate(row)) for row in rows]
    assert at_one_rung(warped)[1] == at_one_rung(rows)[1]


@pytest.mark.slow
@given(pairs)
def test_the_order_of_the_objectives_changes_nothing(rows):
    turned = dict(reversed(TWO.items()))
    assert at_one_rung([row[::-1] for row in rows], turned)[1] == at_one_rung(rows)[1]


@pytest.mark.slow
@given(st.lists(st.integers(0, 30), max_size=40), st.sampled_from(["min", "max"]), factors)
def test_one_objective_is_asynchronous_successive_halving(values, direction, factor):
    config = EarlyStoppingConfig(first_rung=0.9, grace_rounds=1, rung_size=1, reduction_factor=factor)
    scheduler = RungScheduler({"loss": direction}, config)
    seen: list[int] = []
    for number, value in enumerate(values):
        reward = value if direction == "max" else -value
        # The quantile's place counted from the worst; between two places the better one is the cut-off.
        place = math.ceil((len(seen) - 1) * (1 - 1 / Fraction(factor)))
        expected = "stop" if seen and reward < sorted(seen)[place] else "continue"
        assert scheduler.report(number, 9, {"loss": value}, 10) == expected
        seen.append(reward)


@pytest.mark.slow
@given(st.lists(st.integers(0, 60), max_size=60), st.sampled_from([2.0, 4.0]), st.sampled_from(["min", "max"]))
def test_one_objective_gives_the_answers_of_rays_scheduler(values, factor, direction):
    """Ray interpolates between neighbours. On a scale this steep the result equals the better neighbour."""
    bracket = _Bracket(1, 64, factor, 0)
    levels = sorted(milestone for milestone, _ in bracket._rungs if milestone < 64)
    config = EarlyStoppingConfig(first_rung=1 / 64, grace_rounds=1, rung_size=1, reduction_factor=factor)
    scheduler = RungScheduler({"loss": direction}, config)
    assert [level * 64 for level in config.levels] == levels
    rounds = [(number, value, level) for level in levels for number, value in enumerate(values)]
    stopped = set()
    for number, value, level in rounds:
        if number in stopped:
            continue
        value = (value * (number % 3 + int(level))) % 61
        reward = 1e5 ** (value if direction == "max" else 60 - value)
        ours = scheduler.report(number, int(level), {"loss": value}, 64)
        assert ours == bracket.on_result(FakeTrial(number), int(level), reward).lower()
        if ours == "stop":
            stopped.add(number)


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), max_size=14), st.sampled_from([None, math.nan, math.inf, -math.inf, "absent"]))
def test_an_unusable_objective_counts_as_worst(rows, unusable):
    scheduler, _ = at_one_rung(rows)
    values = {"ks_statistic": -1.0} if unusable == "absent" else {"ks_statistic": -1.0, "model_utility": unusable}
    assert scheduler.report("broken", 1, values, 2) == ("stop" if len(rows) >= FULL else "continue")


@pytest.mark.slow
@given(pairs, st.lists(st.integers(0, 14), max_size=5))
def test_unusable_reports_do_not_change_decisions_on_other_trials(rows, places):
    scheduler, expected = RungScheduler(TWO, ONE_RUNG), at_one_rung(rows)[1]
    for number, row in enumerate(rows):
        for copy in range(places.count(number)):
            scheduler.report(f"broken {number} {copy}", 1, {"ks_statistic": math.nan, "model_utility": 1.0}, 2)
        assert scheduler.report(number, 1, dict(zip(TWO, row, strict=True)), 2) == expected[number]


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=8, max_size=20), st.integers(1, 12))
def test_below_the_grace_period_nothing_is_stopped(rows, grace):
    config = EarlyStoppingConfig(first_rung=0.1, grace_rounds=grace, rung_size=1)
    scheduler = RungScheduler(TWO, config)
    for number, row in enumerate(rows):
        for round in range(1, 11):
            answer = scheduler.report(number, round, dict(zip(TWO, row, strict=True)), 10)
            if answer == "stop":
                assert round >= grace
                break


def brute_force_fronts(rows):
    left, fronts, level = set(range(len(rows))), [0] * len(rows), 0
    while left:
        front = {i for i in left if not any(dominates(rows[j], rows[i]) for j in left)}
        for index in front:
            fronts[index] = level
        left, level = left - front, level + 1
    return fronts


@pytest.mark.slow
@given(st.lists(st.tuples(small, small, small), max_size=20), st.booleans())
def test_incremental_fronts_equal_those_of_sorting_all_trials(rows, third):
    directions = THREE if third else TWO
    rows = [row[: len(directions)] for row in rows]
    scheduler, _ = at_one_rung(rows, directions)
    assert scheduler._rungs[0]._front.tolist() == brute_force_fronts(rows)


def promoted_by_definition(rows, factor):
    """Apply the rule of the class docstring to the last row, in exact fractions."""
    fronts, last = brute_force_fronts(rows), len(rows) - 1
    ranks = [
        [Fraction(sum(r[k] < row[k] for r in rows) + sum(r[k] <= row[k] for r in rows) + 1, 2) for k in range(len(row))]
        for row in rows
    ]
    ranks = [[rank if k != 1 else len(rows) + 1 - rank for k, rank in enumerate(row)] for row in ranks]
    left = {i for i in range(len(rows)) if fronts[i] == fronts[last]}
    least = min(max(ranks[i]) for i in left)
    picked, taken = {i for i in left if max(ranks[i]) == least}, set()
    while last not in picked:
        taken, left = taken | picked, left - picked
        away = {i: min(sum((a - b) ** 2 for a, b in zip(ranks[i], ranks[j], strict=True)) for j in taken) for i in left}
        picked = {i for i in left if away[i] == max(away.values())}
    before = sum(front < fronts[last] for front in fronts) + len(taken)
    return fronts[last] == 0 or before <= Fraction(last - 1) / Fraction(factor)


@pytest.mark.slow
@example([(0, 1, 0), (1, 2, 0), (4, 3, 0), (0, 4, 0), (3, 0, 0), (3, 3, 0)], False, 1.5)
@given(st.lists(st.tuples(small, small, small), min_size=2, max_size=16), st.booleans(), factors)
def test_every_answer_follows_the_definition(rows, third, factor):
    directions = THREE if third else TWO
    rows = [row[: len(directions)] for row in rows]
    _, answers = at_one_rung(rows, directions, EarlyStoppingConfig(**ASHA_FIELDS, reduction_factor=factor))
    for count in range(2, len(rows) + 1):
        expected = "continue" if promoted_by_definition(rows[:count], factor) else "stop"
        assert answers[count - 1] == expected


@pytest.mark.parametrize(
    ("newcomer", "answer"),
    [((5, 5), "continue"), ((1, 9), "continue"), ((9, 1), "continue"), ((2, 8), "stop"), ((8, 2), "stop")],
)
def test_inside_a_front_the_net_keeps_the_middle_and_the_ends(newcomer, answer):
    """With one better trial and eight earlier peers, some members of the front of nine continue."""
    peers = [(i, 10 - i) for i in range(1, 10) if i != newcomer[0]]
    minimised = {"first": "min", "second": "min"}
    assert at_one_rung([(0, 0), *peers, newcomer], minimised, ASHA)[1][-1] == answer


def test_a_trial_is_compared_once_at_each_rung_and_a_late_report_at_the_highest():
    config = EarlyStoppingConfig(first_rung=0.125, grace_rounds=1, rung_size=1)
    scheduler = RungScheduler(TWO, config)
    good, bad = {"ks_statistic": 0.1, "model_utility": 0.9}, {"ks_statistic": 0.9, "model_utility": 0.1}
    assert config.levels == (0.125, 0.25, 0.5)
    assert scheduler.report("short", 1, good, 2) == "continue"
    assert scheduler.report("long", 2, bad, 16) == "continue"
    assert scheduler.report("long", 3, bad, 16) == "continue"
    assert scheduler.report("late", 5, bad, 16) == "continue"
    assert scheduler.report("long", 8, bad, 16) == "stop"
    assert scheduler.report("long", 9, good, 16) == "stop"


def test_no_trial_stops_after_its_last_round():
    scheduler = RungScheduler(TWO, ASHA)
    scheduler.report("good", 1, {"ks_statistic": 0.1, "model_utility": 0.9}, 2)
    assert scheduler.report("bad", 1, {"ks_statistic": 0.2, "model_utility": 0.8}, 1) == "continue"


reports = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 8), st.one_of(small, st.just(math.nan)), small), max_size=40
)


@pytest.mark.slow
@given(reports)
def test_a_repeated_report_changes_nothing(rows):
    once, twice = RungScheduler(TWO, ASHA), RungScheduler(TWO, ASHA)
    for trial, round, ks, utility in rows:
        values = {"ks_statistic": ks, "model_utility": utility}
        answer = once.report(trial, round, values, 9)
        assert twice.report(trial, round, values, 9) == answer == twice.report(trial, round, values, 9)


def test_directions_are_checked():
    with pytest.raises(ConfigError, match="'loss' is 'down'"):
        RungScheduler({"loss": "down"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="needs an objective"):
        RungScheduler({})


def test_a_round_beyond_the_last_raises():
    with pytest.raises(ValueError, match="round 3 of 2"):
        RungScheduler(TWO).report(0, 3, {}, 2)


@pytest.mark.parametrize(
    ("first", "factor", "levels"),
    [
        (0.125, 2.0, (0.125, 0.25, 0.5)),
        (1 / 9, 3.0, (1 / 9, 1 / 3)),
        (0.4, 3.0, (0.4,)),
        (0.1, 2.0, (0.1, 0.2, 0.4, 0.8)),
    ],
)
def test_rungs_are_a_factor_apart_and_below_the_end(first, factor, levels):
    assert EarlyStoppingConfig(first_rung=first, reduction_factor=factor).levels == pytest.approx(levels)


@given(st.integers(1, 40), st.sampled_from([0.05, 0.1, 0.125, 0.3]), factors)
def test_the_rung_rounds_are_those_that_reach_a_new_rung(total, first, factor):
    config = EarlyStoppingConfig(first_rung=first, reduction_factor=factor)
    scheduler = RungScheduler(TWO, config)
    compared = []
    for round in range(1, total + 1):
        before = sum(rung.size for rung in scheduler._rungs)
        scheduler.report("only", round, {"ks_statistic": 0.5, "model_utility": 0.5}, total)
        compared += [round] * (sum(rung.size for rung in scheduler._rungs) > before)
    assert tuple(compared) == config.rung_rounds(total)
