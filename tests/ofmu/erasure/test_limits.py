from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from evidence_records import record
from ofmu.erasure.evidence import MetricRecord, NotRunRecord, RowsRecord
from ofmu.erasure.limits import limits, reference_sentence
from ofmu.erasure.request import Kind
from ofmu.erasure.request_rows import RetainSource
from ofmu.evaluation.config import ReferenceConfig

SOURCES = get_args(ReferenceConfig.model_fields["source"].annotation)


def stated(
    kind: Kind = "rows",
    retain: RetainSource = "given",
    reference: str = "retrain",
    count: int = 100,
    probability: float = 0.9,
    skipped: tuple[str, ...] = (),
    **more: Any,
) -> str:
    rows = [RowsRecord(role="forget", count=count, origin="given", hash="", row_hashes=[])]
    known = MetricRecord(name="forget_probability", better="lower", meaning="", target=probability)
    missing = [NotRunRecord(name=name, reason="so") for name in skipped]
    return "\n".join(limits(kind, retain, reference, rows, [known], missing, **more))


@pytest.mark.parametrize(
    ("given", "otherwise", "sentence"),
    [
        ({"reference": "none"}, {"reference": "retrain"}, "cannot be known without a retrained model"),
        ({"reference": "retrain"}, {"reference": "none"}, "Whether the target was once trained as the retrained model"),
        ({"reference": "model"}, {"reference": "retrain"}, "is a statement of the user"),
        ({"kind": "person"}, {}, "by a pronoun, a nickname, a role"),
        ({"kind": "questions"}, {}, "What the target knows beyond these answers"),
        ({"retain": "generated"}, {}, "Utility on the user's own tasks was not measured"),
        ({"retain": "corpus"}, {}, "Utility on other data was not measured"),
        ({"count": 29}, {"count": 30}, "only 29 forget rows"),
        ({"count": 1}, {}, "only 1 forget row,"),
        ({"probability": 0.2}, {"probability": 0.3}, "hardly knew the forget rows"),
        ({"weakness": "the retrained model knows little"}, {}, "The retrained model knows little."),
        ({}, {"seeds": 1}, "How much runs on other seeds differ was not measured"),
        ({"seeds": 1}, {"seeds": 2}, "One run on one further seed gives no interval"),
        ({"seeds": 2}, {"seeds": 1}, "Intervals are over runs"),
        ({"skipped": ("sampling", "membership")}, {}, "not made: sampling, membership."),
    ],
)
def test_each_limit_is_stated_where_it_holds_and_only_there(
    given: dict[str, Any], otherwise: dict[str, Any], sentence: str
):
    assert sentence in stated(**given)
    assert sentence not in stated(**otherwise)


def test_no_limit_promises_anything():
    for kind, retain, reference in itertools.product(get_args(Kind), get_args(RetainSource), SOURCES):
        text = stated(kind, retain, reference, 3, 0.1, ("sampling",)).lower() + reference_sentence(reference).lower()
        assert "certif" not in text
        assert "guarant" not in text
        assert "do not prove" in text
    assert record().limits
