from __future__ import annotations

from typing import Any

import pytest

from ofmu.data.rows import Row, RowSet
from ofmu.erasure.measure import Measured, attack_records, evaluation_config, metric_records, not_run
from ofmu.erasure.request_rows import RequestRows
from ofmu.run_config import UnlearnConfig

PLAIN = Row(question="Q", answer="A")


def rows(*forget: Row, holdout: bool = False) -> RequestRows:
    return RequestRows(
        forget=RowSet("forget", forget or (PLAIN,)),
        retain=RowSet("retain", (Row(question="R", answer="S"),)),
        holdout=RowSet("holdout", (Row(question="H", answer="I"),)) if holdout else None,
        origins={},
        retain_source="given",
    )


def report(value: float, *names: str, **more: Any) -> dict[str, Any]:
    return {"metrics": dict.fromkeys(names, value) | {"privacy_leakage": None}, "reasons": {}, **more}


NAMES = (
    "forget_probability",
    "model_utility",
    "membership_loss",
    "relearning_probability",
    "quantization_4_model_utility",
    "sampled_leakage",
)


def measured(**more: Any) -> Measured:
    given = {"target": report(0.9, *NAMES), "result": report(0.1, *NAMES), "retrained": report(0.2, *NAMES)}
    return Measured(**{**given, **more})


def test_metrics_and_attacks_have_the_values_of_each_model():
    metrics = {each.name: each for each in metric_records(measured(), [{"forget_probability": v} for v in (0.1, 0.3)])}
    assert list(metrics) == ["forget_probability", "model_utility"]
    known = metrics["forget_probability"]
    assert (known.target, known.result, known.retrained, known.runs) == (0.9, 0.1, 0.2, 2)
    assert known.mean is not None
    assert known.low is not None
    assert known.low < 0.2 < (known.high or 0)
    assert metrics["model_utility"].mean is None
    attacks = {each.name: [metric.name for metric in each.metrics] for each in attack_records(measured(), 100)}
    assert attacks == {
        "membership": ["membership_loss"],
        "relearning": ["relearning_probability"],
        "quantization_4": ["quantization_4_model_utility"],
        "sampling": ["sampled_leakage"],
    }


@pytest.mark.parametrize(
    ("rows", "others"), [(8, "the same rows, since there are no others"), (9, "measures the others")]
)
def test_relearning_of_few_rows_says_that_it_trains_on_all_of_them(rows: int, others: str):
    texts = {each.name: each.description for each in attack_records(measured(), rows)}
    assert others in texts["relearning"]


def test_a_metric_that_the_result_lacks_is_left_out():
    without = report(0.1, "model_utility")
    assert [each.name for each in metric_records(measured(result=without), [])] == ["model_utility"]


def test_without_a_retrained_model_the_scores_of_one_will_do():
    alone = measured(retrained=None)
    assert metric_records(alone, [])[0].retrained is None
    scores = report(0.1, *NAMES, baseline_metrics={"retrained": {"forget_probability": 0.25}})
    assert metric_records(measured(retrained=None, result=scores), [])[0].retrained == 0.25


def test_attacks_that_were_not_made_have_a_reason():
    skipped = {each.name: each.reason for each in not_run(measured(), rows())}
    assert set(skipped) == {
        "quantization_8",
        "in_scope_paraphrase",
        "in_scope_multi_hop",
        "in_scope_translation",
        "few_shot",
    }
    assert skipped["in_scope_paraphrase"] == "no forget row has a paraphrased_question"
    result = report(0.1, "model_utility") | {
        "reasons": {"relearning_probability": "the losses are NaN", "sampled_leakage": "no question", "mine": "so"}
    }
    skipped = {each.name: each.reason for each in not_run(measured(result=result), rows())}
    assert skipped["relearning"] == "the losses are NaN"
    assert skipped["sampling"] == "no question"
    assert "no rows are known on which the model was never trained" in skipped["membership"]


def test_every_attack_that_the_rows_allow_is_asked_for():
    config = UnlearnConfig()
    plain = evaluation_config(config, rows()).evaluation
    assert plain.attacks == ("relearning", "quantization_8", "quantization_4", "sampling", "few_shot")
    assert (plain.membership, plain.in_scope, plain.alignment) == (False, False, True)
    asked = Row(question="Q", answer="A", paraphrased_question="P")
    rich = evaluation_config(config, rows(PLAIN, asked, holdout=True)).evaluation
    assert (rich.membership, rich.in_scope) == (True, True)
    alone = config.model_copy(update={"reference": config.reference.model_copy(update={"source": "none"})})
    assert not evaluation_config(alone, rows()).evaluation.alignment
