"""The archive with its log on disk. Searches that use its actor are in tests/integration."""

from __future__ import annotations

import json
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


POINT = {"ks_statistic": 0.5, "model_utility": 0.5}


def report(**changed: object) -> str:
    return json.dumps({"trial": 1, "round": 2, "total": 8, "values": POINT, "violation": 0.0} | changed)


def selection(candidates: object) -> str:
    return json.dumps({"trial": 1, "candidates": candidates})


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[1]",
        '{"trial": 1}',
        report(trial=float("inf")),
        report(round="2"),
        report(round=9),
        report(values=[1]),
        report(values={"ks_statistic": 10**400}),
        report(values={}, violation="x"),
        report(violation=float("nan")),
        selection(None),
        selection([1]),
        selection({}),
        selection({"x": {}}),
        selection({"2": {"values": [1]}}),
        selection({"2": {"values": POINT, "violation": "0"}}),
        selection({"2": {"values": POINT, "a": 1}}),
    ],
    ids=lambda text: text[:60],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    path = tmp_path / "rounds.jsonl"
    whole = f"{report()}\n{selection({'2': {'values': POINT}})}\n{text}\n"
    path.write_text(whole)
    with pytest.raises(DataError) as refused:
        PersistentRoundArchive(path, OBJECTIVES, 0.1)
    assert str(refused.value) == f"{path} is malformed in line 3: delete the file to start checkpoint selection anew"
    with pytest.raises(DataError, match=r"^s3://bucket/rounds\.jsonl is malformed in line 3"):
        PersistentRoundArchive(path, OBJECTIVES, 0.1, "s3://bucket/rounds.jsonl")
    assert path.read_text() == whole
