from __future__ import annotations

from search_runs import write_search, write_warm_search
from tune.results.tables import own_trials


def test_a_searchs_own_trials_are_those_that_it_ran(tmp_path):
    warm = write_warm_search(tmp_path / "run")
    assert len(warm.trials) == 4 + 8, "the earlier search has 8 complete trials beside its baselines"
    own = own_trials(warm.trials)
    assert own["gradient_evaluations"].tolist() == [7.0] * 4
    assert set(own["state"]) == {"complete"}
    cold = write_search(tmp_path / "cold").trials
    assert own_trials(cold).equals(cold)
