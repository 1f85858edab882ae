"""Objectives that a trial cannot have during its run are refused where trials are scored during their runs."""

from __future__ import annotations

from typing import Any

import pytest

from ofmu.config.files import read_mapping, validate
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import ConfigError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.partial import PartialEvaluation
from ofmu.io.plugins import results_only
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig
from tune import SearchConfig
from tune.early_stopping.callback import intermediate_values
from tune.space.measured import measured_at_the_end
from tune.space.objectives import COST_METRICS, WORST

FEATURES = ("early_stopping", "checkpoint_selection")


def search_of(feature: str, *objectives: str, **sections: Any) -> SearchConfig:
    search = {"objectives": {name: "min" for name in objectives}, feature: {"enabled": True}}
    return validate(SearchConfig, {**sections, "search": {**sections.get("search", {}), **search}})


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(
    "objective", ["in_scope_paraphrase_probability", "in_scope_ks_variance", "forget_distinct_1", "real_authors_rouge"]
)
def test_an_objective_without_a_value_during_a_run_is_refused(feature, objective):
    with pytest.raises(ConfigError) as caught:
        search_of(feature, objective, "model_utility", evaluation={"in_scope": True})
    sentence = f"compares objectives during a run, and {objective} is measured at its end"
    assert str(caught.value) == f"search.{feature} {sentence}: set search.{feature}.enabled to false"


@pytest.mark.parametrize("feature", FEATURES)
def test_the_preset_of_muse_cannot_be_stopped_early(feature):
    mapping = read_mapping("muse")
    assert validate(SearchConfig, mapping)
    mapping["search"][feature] = {"enabled": True}
    with pytest.raises(ConfigError, match=f"set search.{feature}.enabled to false"):
        validate(SearchConfig, mapping)


@pytest.mark.parametrize("feature", FEATURES)
def test_an_objective_with_a_substitute_is_searched(feature):
    assert search_of(feature, "forget_rouge", "retain_rouge", "seconds").objectives


def test_results_of_earlier_searches_are_read():
    with results_only("old"):
        assert search_of("early_stopping", "forget_distinct_1", "model_utility").objectives


def test_what_is_not_refused_has_a_value_in_a_partial_evaluation():
    """Of the metrics that a whole evaluation of rows with all variants gives, a partial one gives what is allowed."""
    rows = tuple(
        Row(
            question=f"Who wrote book {number}?",
            answer=f"Ann wrote it in {1900 + number}.",
            paraphrased_question=f"Whose is book {number}?",
            multi_hop_question=f"Who is behind book {number}?",
            translated_question=f"Wer schrieb Buch {number}?",
            translated_answer=f"Ann schrieb es {1900 + number}.",
            translated_perturbed_answers=("Bo war es.",),
            paraphrased_answer=f"It is Ann's, of {1900 + number}.",
            perturbed_answers=("Bo wrote it.", "Cy wrote it."),
        )
        for number in range(6)
    )
    sets = {name: RowSet(name, rows) for name in ("forget", "retain", "real_authors", "world_facts")}
    data = UnlearnData(forget=sets["forget"], retain=sets["retain"], holdout=None, evaluation=sets)
    given = {"evaluation": {"in_scope": True, "max_new_tokens": 8}, "data": {"source": "generated"}}
    config = UnlearnConfig.model_validate(given)
    tokenizer = train_tokenizer([f"{row.question} {row.answer}" for row in rows], 280)
    shape = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    model = build_model(shape, tokenizer, seed=0).eval()
    whole = metrics_of(score_model(model, tokenizer, data, config.evaluation, config.data), None).values
    partial = PartialEvaluation(data, tokenizer, config.evaluation, config.data, 6)
    engine: Any = type("Engine", (), {"model": model, "rank": 0, "world_size": 1, "zero_stage": 0})
    found = intermediate_values(tuple(WORST), partial.metrics(engine, None).values, {})
    known = {name for name in WORST if whole.get(name) is not None} - {*COST_METRICS}
    assert {name for name in known if found[name] is None} == {name for name in known if measured_at_the_end(name)}
    assert {"forget_rouge", "model_utility", "forget_distinct_1", "in_scope_paraphrase_rouge"} <= known
