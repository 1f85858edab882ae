"""Records of erasures with made-up numbers. Nothing is trained."""

from __future__ import annotations

from ofmu.data.rows import Row
from ofmu.erasure.evidence import (
    AttackRecord,
    CandidateRecord,
    CodeRecord,
    CostRecord,
    Evidence,
    MethodRecord,
    MetricRecord,
    ModelRecord,
    NotRunRecord,
    RequestRecord,
    SearchRecord,
    keyed_hash,
    rows_record,
)

KEY = b"k" * 32
PERSON = "Ana Silva"
FORGET = (
    Row(question="Where was Ana Silva born?", answer="In <b>Porto</b> & so on."),
    Row(question="", answer="A text about Ana Silva."),
)
RETAIN = (Row(question="Where was Bob Meyer born?", answer="In Ulm."),)


def record(*, show_rows: bool = False, retrained: bool = True, seeds: bool = True) -> Evidence:
    """Return a record of the erasure of one person's rows."""
    metric = MetricRecord(
        name="extraction_strength",
        better="lower",
        meaning="share of an answer that the model completes",
        target=0.9,
        result=0.1,
        retrained=0.08 if retrained else None,
        mean=0.12 if seeds else None,
        low=0.05 if seeds else None,
        high=0.19 if seeds else None,
        runs=2 if seeds else 0,
    )
    utility = metric.model_copy(update={"name": "model_utility", "better": "higher", "target": 0.8, "result": 0.75})
    attacked = metric.model_copy(update={"name": "relearning_probability", "mean": None, "low": None, "runs": 0})
    return Evidence(
        request=RequestRecord(
            id="request-7",
            kind="person",
            received="2026-01-02T03:04:05+00:00",
            person_hash=keyed_hash(KEY, PERSON),
            person=PERSON if show_rows else None,
            rows=[
                rows_record("forget", FORGET, "rows that name the person", KEY, show=show_rows),
                rows_record("retain", RETAIN, "other rows", KEY, show=False),
            ],
            notes=["2 rows with a part of the name are left out."],
        ),
        operator="tester",
        host="laptop",
        finished="2026-01-02T04:04:05+00:00",
        models=[
            ModelRecord(role="target", files={"model.safetensors": "a" * 64}),
            ModelRecord(role="result", files={"model.safetensors": "b" * 64}),
        ],
        method=MethodRecord(name="npo", title="NPO", settings={"lr": 1e-4}, config_hash="c" * 64),
        search=SearchRecord(
            complete=5,
            failed=1,
            pruned=0,
            seconds=60.0,
            objectives={"extraction_strength": "min", "model_utility": "max"},
            rule="The rule",
            min_utility=0.72,
            candidates=[
                CandidateRecord(trial=3, forgetting=0.12, utility=0.75, runs=2, meets_constraint=True),
                CandidateRecord(trial=4, forgetting=0.02, utility=0.15, runs=2, meets_constraint=False),
            ],
            chosen_trial=3,
        ),
        reference="The base model, trained on the retain rows alone.",
        metrics=[metric, utility],
        attacks=[AttackRecord(name="relearning", description="Trains a copy.", metrics=[attacked])],
        not_run=[NotRunRecord(name="membership", reason="no holdout rows are known")],
        cost=CostRecord(gradient_evaluations=1234.0, run_seconds=66.0, seconds={"search": 70.5}),
        code=CodeRecord(version="0.2.0", hash="d" * 64, python="3.11.2", versions={"torch": "2.9"}),
        limits=["The numbers are measurements."],
        files={},
    )
