"""The first sentences of the evidence page."""

from __future__ import annotations

import pytest

from evidence_records import record
from ofmu.erasure.evidence import AttackRecord, Evidence, MetricRecord
from ofmu.erasure.page import evidence_page


def attacked(name: str, better: str, target: float | None, result: float | None) -> MetricRecord:
    return MetricRecord(name=name, better=better, meaning="as measured", target=target, result=result)


def with_attacks(*metrics: MetricRecord) -> Evidence:
    attack = AttackRecord(name="sampling", description="Samples answers.", metrics=list(metrics))
    return record().model_copy(update={"attacks": [*record().attacks, attack]})


def verdict_of(made: Evidence) -> str:
    return evidence_page(made).partition('<p class="verdict">')[2].partition("</p>")[0]


def test_attacks_that_got_worse_are_named_in_one_sentence():
    made = with_attacks(
        attacked("sampled_leakage", "lower", 0.192, 0.292),
        attacked("few_shot_leakage", "lower", 0.4, 0.3),
        attacked("held", "higher", 0.5, 0.25),
        attacked("membership_loss", "near 0.5", 0.6, 0.1),
    )
    sentence = (
        "sampled_leakage got worse: from 0.192 to 0.292; held got worse: from 0.5 to 0.25; "
        "membership_loss got worse: from 0.6 to 0.1."
    )
    verdict = verdict_of(made)
    assert verdict.endswith(sentence)
    assert verdict.startswith("extraction_strength (lower is better) went from 0.9 to 0.1")


@pytest.mark.parametrize(
    "metric",
    [
        attacked("sampled_leakage", "lower", 0.292, 0.192),
        attacked("sampled_leakage", "lower", 0.29200001, 0.29200002),
        attacked("sampled_leakage", "lower", None, 0.5),
        attacked("membership_loss", "near 0.5", 0.9, 0.3),
        attacked("own", "–", 0.1, 0.9),
    ],
)
def test_without_a_worse_attack_there_is_no_such_sentence(metric: MetricRecord):
    assert "got worse" not in verdict_of(with_attacks(metric))
