"""The parts of a page that are pure functions: numbers, metric rows, answers, verdicts."""

from __future__ import annotations

import math

import pytest

from ofmu.evaluation.metrics.registry import GROUPS, REGISTRY
from ofmu.reports.answers import answered_sets
from ofmu.reports.charts import plain
from ofmu.reports.metric_table import metric_groups, missing_metrics
from ofmu.reports.numbers import big_number, duration, memory, metric_text, number
from ofmu.reports.verdict import great_loss, ks_numbers, verdict
from report_runs import row, scores


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0"),
        (32.0, "32"),
        (0.123456, "0.1235"),
        (6.98e-17, "6.98e-17"),
        (1.0e-5, "1e-5"),
        (123456789.5, "1.235e8"),
        (math.inf, "inf"),
        (True, "True"),
        ("adamw", "adamw"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_counts_times_and_sizes():
    assert big_number(1234567.0) == "1,234,567"
    assert [duration(seconds) for seconds in (None, 3.21, 42, 61, 3599.7, 7500)] == [
        "–",
        "3.2 s",
        "42 s",
        "1\u00a0min 01\u00a0s",
        "1\u00a0h 00\u00a0min",
        "2\u00a0h 05\u00a0min",
    ]
    assert [memory(size) for size in (None, 5e8, 2.5e9)] == ["–", "477 MiB", "2.33 GiB"]


def test_the_groups_hold_every_metric_once():
    assert [info.name for group in GROUPS.values() for info in group] == list(REGISTRY)


def test_metric_rows_place_values_in_their_range():
    groups = metric_groups([{"ks_statistic": 0.25, "mine": 2.0, "seconds": 3.0}, {"ks_statistic": 1.0}, {}])
    assert [group.title for group in groups] == ["Forgetting", "Your metrics"]
    (first,) = groups[0].rows
    assert (first.values, first.places, first.better) == ((0.25, 1.0, None), (0.25, 1.0, None), "lower")
    unbounded = metric_groups([{"forget_quality_rows": 32.0, "log10_forget_quality": math.nan}])[0].rows
    assert [row.places for row in unbounded] == [(None,), (None,)]


def test_missing_metrics_are_grouped_by_reason():
    assert missing_metrics({"a": "no rows", "b": "x", "c": "no rows"}) == {"no rows": ["a", "c"], "x": ["b"]}


def test_answers_are_matched_by_row_and_marked_by_word():
    model, other = scores("model", 1.0, answers="THE forget, number0!"), scores("other", 1.0)
    (forget, *_) = answered_sets({"model": model, "other": other}, limit=3)
    assert (forget.title, len(forget.rows), forget.total) == ("Forget rows", 3, 8)
    first = forget.rows[0]
    assert first.answers[0].parts == (("THE forget, ", False), ("number0", True), ("!", False))
    assert "".join(text for text, _ in first.answers[1].parts) == first.truth
    assert first.answers[0].probability == pytest.approx(math.exp(-0.25))


def test_a_row_that_another_model_lacks_has_no_answer_of_it():
    model = scores("model", 1.0)
    other = scores("other", 1.0)
    other.sets["forget"] = other.sets["forget"][1:]  # type: ignore[index]
    rows = answered_sets({"model": model, "other": other})[0].rows
    assert [len(each.answers) for each in rows] == [1, *[2] * 7]


def test_rows_without_a_hash_are_matched_by_their_text():
    from dataclasses import replace

    first = row("forget", 0, 1.0, "yes")
    model = scores("model", 1.0)
    model.sets["forget"] = (replace(first, row_hash=None),)  # type: ignore[index]
    log = scores("log", 1.0)
    log.sets["forget"] = (replace(first, row_hash=None, generated=None, answer=first.answer),)  # type: ignore[index]
    (only,) = answered_sets({"model": model, "log": log})[0].rows
    assert [answer.parts for answer in only.answers] == [(("yes", False),), ()]


@pytest.mark.parametrize(("p", "verb"), [(0.049, "tells"), (0.05, "does not tell")])
def test_the_verdict_follows_p(p, verb):
    metrics = {"ks_statistic": 0.5, "forget_quality": p, "forget_quality_rows": 20.0, "model_utility": 0.4}
    text = verdict(metrics, {"target": {"model_utility": 0.8, "forget_quality": 0.001}})
    assert f"the KS test {verb} this model from the retrained model" in text
    assert "50 % of the target's" in text
    assert ks_numbers(metrics) == f"D = 0.5, p = {p:.2g}, n = 20"


@pytest.mark.parametrize("metrics", [{}, {"ks_statistic": None}, {"forget_quality": 0.5}, {"ks_statistic": math.nan}])
def test_there_is_no_verdict_without_the_test(metrics):
    assert verdict(metrics, {}) == ""


@pytest.mark.parametrize("text", ["$$x$$", r"\[x\]", r"\(x\)"])
def test_no_text_starts_the_loading_of_mathjax(text):
    assert not any(sign in plain(text) for sign in ("$$", r"\[", r"\("))
    assert plain("a $ and (b)") == "a $ and (b)"


def test_bytes_have_three_digits_and_a_unit():
    sizes = (1, 5 * 2**20, 999.4 * 2**20, 999.6 * 2**20, 2**30, 79.6 * 2**30, 1500 * 2**30, math.nan)
    expected = ["9.54e-07 MiB", "5 MiB", "999 MiB", "0.976 GiB", "1 GiB", "79.6 GiB", "1500 GiB", "–"]
    assert [memory(size) for size in sizes] == expected
    assert metric_text("peak_memory_bytes", 5e8) == "477 MiB"
    assert metric_text("peak_memory_bytes", 5 * 10**8, 6) == "477 MiB"
    assert metric_text("peak_memory_bytes", None) == "–"
    assert metric_text("model_utility", 5e8) == number(5e8)


@pytest.mark.parametrize(
    ("utility", "of_target", "lost"),
    [(0.1, 0.8, True), (0.39, 0.8, True), (0.4, 0.8, False), (0.1, None, False), (0.1, 0.0, False), (None, 0.8, False)],
)
def test_a_loss_of_more_than_half_of_the_utility_is_said(utility, of_target, lost):
    metrics, target = {"model_utility": utility}, {"model_utility": of_target}
    said = great_loss(metrics, target)
    assert (said is not None) is lost
    assert ("More than half of it is lost." in verdict(metrics, {"target": target})) is lost
    if lost:
        assert said == f"keeps {100 * utility / of_target:.0f} % of the target's model_utility"


def test_a_target_whose_utility_is_0_is_no_missing_one():
    assert verdict({"model_utility": 0.1}, {"target": {"model_utility": 0.0}}) == (
        "Model utility is 0.1, and the target's is 0."
    )
    assert verdict({"model_utility": 0.1}, {"target": {"model_utility": None}}) == ""


@pytest.mark.parametrize(
    ("words", "repetition", "of_target", "said"),
    [
        (0.1, 0.0, {"forget_answer_words": 6.0}, "are empty"),
        (20.0, 0.8, {"forget_repetition": 0.1}, "repeat themselves (forget_repetition 0.8)"),
        (20.0, 0.8, {"forget_repetition": 0.7}, ""),
        (0.1, 0.0, {"forget_answer_words": 0.2}, ""),
        (0.1, 0.0, {"forget_answer_words": 0.0}, ""),
        (0.1, 0.0, {"forget_answer_words": math.nan}, "are empty"),
        (20.0, 0.8, {"forget_repetition": 0.0}, "repeat themselves"),
        (6.0, 0.1, {}, ""),
        (None, None, {}, ""),
    ],
)
def test_empty_and_babbling_answers_are_said(words, repetition, of_target, said):
    text = verdict({"forget_answer_words": words, "forget_repetition": repetition}, {"target": of_target})
    assert said in text
    assert bool(text) is bool(said)
