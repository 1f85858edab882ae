from __future__ import annotations

import pandas as pd

from search_runs import write_search, write_warm_search
from tune.results.tables import mean_trial_seconds, own_trials


def test_a_searchs_own_trials_are_those_that_it_ran(tmp_path):
    warm = write_warm_search(tmp_path / "run")
    assert len(warm.trials) == 4 + 8, "the earlier search has 8 complete trials beside its baselines"
    own = own_trials(warm.trials)
    assert own["gradient_evaluations"].tolist() == [7.0] * 4
    assert set(own["state"]) == {"complete"}
    cold = write_search(tmp_path / "cold").trials
    assert own_trials(cold).equals(cold)


def test_the_mean_of_a_trials_seconds_leaves_out_the_target_and_earlier_searches() -> None:
    trials = pd.DataFrame(
        {
            "state": ["complete", "complete", "failed", "prior", "running"],
            "role": ["target", "published", "sampled", "sampled", "sampled"],
            "seconds": [1.0, 30.0, 10.0, 500.0, None],
        }
    )
    assert mean_trial_seconds(trials) == 20
    assert mean_trial_seconds(trials.head(1)) is None
    assert mean_trial_seconds(trials.drop(columns="seconds")) is None
