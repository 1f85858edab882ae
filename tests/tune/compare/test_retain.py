"""The spread over draws of the retain rows beside the spread over the seeds, against NumPy and by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from tune.compare.page import comparison_page
from tune.compare.report import markdown
from tune.compare.result import ComparisonResult
from tune.compare.retain import leaders, pooled_deviation, retain_sentences, retain_table
from tune.compare.summary import Summary
from tune.space.constraints import Limit

SEEDS = {
    "npo": [[(0.30, 0.70), (0.34, 0.70), (0.32, 0.73)], [(0.50, 0.76), (0.54, 0.75), (0.49, 0.77)]],
    "rmu": [[(0.40, 0.60), (0.41, 0.61), (0.42, 0.62)]],
}
DRAWN = {
    "npo": [[(0.36, 0.66), (0.28, 0.72)], [(0.60, 0.70), (0.52, 0.74)]],
    "rmu": [[(0.10, 0.78), None]],
}


@pytest.fixture
def summary(summarised) -> Summary:
    return summarised(SEEDS, drawn=DRAWN)


def test_the_pooled_deviation_is_that_of_equal_groups_and_weighs_unequal_ones():
    groups = [[1.0, 2.0, 4.0], [10.0, 13.0, 11.5]]
    assert pooled_deviation(groups) == pytest.approx(np.sqrt(np.mean([np.var(group, ddof=1) for group in groups])))
    unequal = [[0.0, 2.0], [1.0, 1.0, 1.0, 5.0], [7.0]]
    assert pooled_deviation(unequal) == pytest.approx(np.sqrt((2 + 12) / (1 + 3)))
    assert pooled_deviation([[3.0], []]) is None


def test_spreads_and_changes_are_those_of_the_points(summary):
    forgetting, utility, volume = summary.method("npo").retain_spreads
    assert (forgetting.quantity, utility.quantity, volume.quantity) == ("ks_statistic", "model_utility", "hypervolume")
    over_draws = [statistics.variance(values) for values in ((0.36, 0.28), (0.60, 0.52))]
    over_seeds = [statistics.variance(values) for values in ((0.30, 0.34, 0.32), (0.50, 0.54, 0.49))]
    assert forgetting.between_draws == pytest.approx(np.sqrt(np.mean(over_draws)))
    assert forgetting.between_seeds == pytest.approx(np.sqrt(np.mean(over_seeds)))
    assert forgetting.ratio == pytest.approx(np.sqrt(np.mean(over_draws) / np.mean(over_seeds)))
    # Against seed 1, which all draws have: 0.32 against 0.30, and 0.56 against 0.50.
    assert forgetting.shift == pytest.approx((0.02 + 0.06) / 2)
    assert utility.shift == pytest.approx((0.69 - 0.70 + 0.72 - 0.76) / 2)


def test_hypervolumes_are_those_of_the_draws_runs(summary):
    npo = summary.method("npo")
    worst = summary.reference_point
    assert worst == {"ks_statistic": 1.0, "model_utility": 0.0}
    # The union of two rectangles towards the worst values, per draw.
    by_hand = [0.4 * 0.70 + (0.64 - 0.4) * 0.66, 0.48 * 0.74 + (0.72 - 0.48) * 0.72]
    assert npo.retain_hypervolumes == pytest.approx(by_hand)
    assert npo.retain_spreads[-1].between_draws == pytest.approx(statistics.stdev(by_hand))
    assert npo.retain_spreads[-1].between_seeds == pytest.approx(statistics.stdev(npo.hypervolumes))
    assert npo.retain_spreads[-1].shift == pytest.approx(statistics.fmean(by_hand) - npo.hypervolumes[0])


def test_draws_change_no_other_number(summary, summarised):
    plain = summarised(SEEDS)
    without = {"retain_draws": 0, "retain_share": 1.0}
    bare = [
        m.model_copy(update={"retain_points": (), "retain_hypervolumes": (), "retain_spreads": ()})
        for m in summary.methods
    ]
    assert summary.model_copy(update={**without, "methods": tuple(bare)}) == plain
    assert "retain rows" not in markdown(plain)


def test_a_failed_draw_is_left_out_and_counted(summary):
    forgetting, _, volume = summary.method("rmu").retain_spreads
    assert forgetting.between_draws is None
    assert forgetting.ratio is None
    assert forgetting.shift == pytest.approx(0.10 - 0.40)
    assert summary.method("rmu").retain_hypervolumes[1] == 0
    assert volume.between_draws is not None
    assert "1 run on a draw failed and is left out." in retain_sentences(summary)


def test_a_run_that_violates_a_constraint_changes_no_spread(summarised):
    """Its numbers are those of a comparison in which the run failed: on the seeds, on the draws, and in the change."""
    broken, seeds, draws = (0.01, 0.1), SEEDS["npo"], DRAWN["npo"]

    def comparison(run, **more):
        npo = [[run, *seeds[0][1:]], [seeds[1][0], run, seeds[1][2]]]
        return summarised({**SEEDS, "npo": npo}, drawn={**DRAWN, "npo": [draws[0], [draws[1][0], run]]}, **more)

    summary, failed = comparison(broken, limits=(Limit("model_utility", "min", 0.4),)), comparison(None)
    assert summary.method("npo").retain_spreads == failed.method("npo").retain_spreads
    assert summary.method("npo").retain_hypervolumes == failed.method("npo").retain_hypervolumes
    said = retain_sentences(summary)
    assert "1 run on a draw failed and is left out. 1 run on a draw violates a constraint and is left out." in said
    assert "2 runs on a draw failed and are left out." in retain_sentences(failed)


@pytest.mark.slow
def test_the_report_says_who_leads_in_each_draw_and_on_each_seed(summary, tmp_path):
    assert leaders({"a": [1.0, 3.0], "b": [2.0, 3.0]}) == ["b", "a"]
    text = markdown(summary)
    assert "Largest hypervolume: rmu 1 of 2, npo 1 of 2 over 2 draws" in text
    assert "npo 3 of 3 over 3 seeds" in text
    assert "50 % of the retain rows, at seed 1" in text
    header, *rows = retain_table(summary)
    assert len(rows) == 6
    assert all(f"| {' | '.join(row)} |" in text for row in (header, *rows))
    result = ComparisonResult(tmp_path, summary)
    page = comparison_page(result)
    assert "Which retain rows were used" in page
    assert all(cell in page for row in rows for cell in row if cell)
    result.save()
    again = ComparisonResult.load(tmp_path).summary
    assert again == summary
    assert again.method("npo").retain_points[0].runs[1].retain_rows_hash == "hash of draw 2"
