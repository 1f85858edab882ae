"""What the tables and the verdict say, for tests of which the outcome is made up."""

from __future__ import annotations

import pytest

from tune.compare.summary import PairTest
from tune.compare.tables import explanation, verdict
from tune.compare.tables import test_table as table_of_tests

ALIKE = [[(0.4, 0.6)] * 3]


def pair(first: str, second: str, gain: float, p: float, *, consistent: bool = True) -> PairTest:
    return PairTest(
        quantity="levels",
        first=first,
        second=second,
        gain=gain,
        p=p,
        p_holm=p,
        pairs=18,
        min_attainable_p=1e-5,
        exact=True,
        consistent=consistent,
    )


WON = pair("a", "c", 0.1, 0.049)
UNSURE = pair("a", "b", 0.1, 0.3, consistent=False)


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ([UNSURE, WON], "a is not significantly different from b (corrected p 0.3)."),
        # The pair with the largest p is won, so it is not the reason.
        (
            [pair("b", "a", -0.1, 0.046, consistent=False), WON],
            "a is not better than b on every seed (corrected p 0.046).",
        ),
        (
            [UNSURE, pair("a", "c", -0.1, 0.01)],
            "c is better than a in the mean over all pairs of seed and level (corrected p 0.01).",
        ),
        (
            [UNSURE, pair("c", "a", 0.1, 0.01, consistent=False)],
            "c is better than a in the mean over all pairs of seed and level (corrected p 0.01), "
            "though not on every seed.",
        ),
    ],
)
def test_the_verdict_names_a_pair_that_fails_and_its_own_reason(summarised, tests, words):
    summary = summarised({"a": ALIKE, "b": ALIKE, "c": ALIKE}).model_copy(update={"tests": tuple(tests)})
    assert verdict(summary).endswith(f"share the best mean rank, but {words}")


@pytest.mark.slow
def test_a_sampled_test_is_called_so_and_has_the_least_p_of_its_samples(summarised):
    """24 seeds give more pairs than are counted exactly: of the levels, and of the hypervolumes."""
    good = [[(0.3 + 0.001 * seed, 0.6) for seed in range(24)]]
    poor = [[(forgetting + 0.1, utility - 0.1) for forgetting, utility in good[0]]]
    summary = summarised({"a": good, "b": poor}, seeds=24)
    header, *rows = table_of_tests(summary)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert cells["p"].endswith(" (sampled)")
        assert float(cells["p"].split()[0]) >= float(cells["least p"]) == 2e-5
    said = explanation(summary)
    assert "a sign-flip permutation test (exact, or sampled above 20 pairs)" in said
    assert "with 24 seeds, no p can be below 2e-05" in said
