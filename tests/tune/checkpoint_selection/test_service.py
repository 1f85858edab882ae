"""The archive with its log on disk. Searches that use its actor are in tests/integration."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofmu.errors import DataError
from tune.checkpoint_selection.archive import RoundArchive, Scored
from tune.checkpoint_selection.service import PersistentRoundArchive

OBJECTIVES = {"ks_statistic": "min", "model_utility": "max"}
value = st.one_of(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), st.none())
score = st.builds(
    lambda distance, utility, violation: Scored({"ks_statistic": distance, "model_utility": utility}, violation),
    value,
    value,
    st.sampled_from([0.0, 0.0, 0.1, 0.2]),
)
call = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(1, 4), score),
    st.tuples(st.integers(0, 3), st.dictionaries(st.integers(1, 4), score, min_size=1, max_size=2)),
)


def answer(archive, arguments):
    if len(arguments) == 3:
        trial, round, scored = arguments
        return archive.report(trial, round, 5, scored)
    return archive.select(*arguments)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(call, max_size=20), st.integers(0, 20))
def test_a_restart_at_any_call_changes_no_decision(calls, cut):
    archive, first, expected = RoundArchive(OBJECTIVES, 0.1), {}, []
    for arguments in calls:
        key = arguments[:2] if len(arguments) == 3 else arguments[0]
        if key not in first:
            first[key] = answer(archive, arguments)
        expected.append(first[key])
    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder) / "rounds.jsonl", []
        for part in (calls[:cut], calls[cut:]):
            stored = PersistentRoundArchive(path, OBJECTIVES, 0.1)
            found += [answer(stored, arguments) for arguments in part]
    assert found == expected


@pytest.mark.parametrize("text", ["[1]\n", '{"trial": 1}\n', '{"trial": 1, "candidates": {"x": {}}}\n', "nonsense\n"])
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    path = tmp_path / "rounds.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rounds\.jsonl is malformed"):
        PersistentRoundArchive(path, OBJECTIVES, 0.1)
    assert path.read_text() == text
