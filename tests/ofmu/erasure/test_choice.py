from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ofmu.erasure.choice import Candidate, ChoiceRule

VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8, 0.9, 1.0])
POINTS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8)


def rule(direction: str = "min", share: float = 0.9) -> ChoiceRule:
    return ChoiceRule(
        forgetting="ks_statistic",
        direction=direction,  # type: ignore[arg-type]
        utility="model_utility",
        min_share=share,
        target_forgetting=0.8 if direction == "min" else 0.1,
        target_utility=0.9,
    )


@given(POINTS, st.sampled_from(["min", "max"]), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_nothing_with_enough_utility_forgets_more_than_the_first(points, direction, share):
    found, chosen_by = (
        [Candidate(trial=n, forgetting=x, utility=y) for n, (x, y) in enumerate(points)],
        rule(direction, share),
    )
    first = chosen_by.ordered(found)[0]
    better = (lambda a, b: a < b) if direction == "min" else (lambda a, b: a > b)
    enough = [
        each for each in found if each.utility >= share * 0.9 and better(each.forgetting, chosen_by.target_forgetting)
    ]
    assert chosen_by.allows(first) == bool(enough)
    for each in enough:
        assert not better(each.forgetting, first.forgetting)
        if each.forgetting == first.forgetting:
            assert (each.utility, -each.trial) <= (first.utility, -first.trial)


def test_a_trial_that_forgets_as_little_as_the_target_is_not_allowed():
    assert not rule().allows(Candidate(trial=1, forgetting=0.8, utility=1.0))
    assert not rule("max").allows(Candidate(trial=1, forgetting=0.1, utility=1.0))
    assert rule().allows(Candidate(trial=1, forgetting=0.79, utility=0.81))
    assert not rule().allows(Candidate(trial=1, forgetting=0.1, utility=0.8))


def test_the_rule_is_stated_with_its_bounds():
    assert rule().sentence == (
        "Among the trials whose model_utility is at least 0.81 (90% of the target's 0.9) and that forget more than the "
        "target, the trial with the lowest ks_statistic"
    )
