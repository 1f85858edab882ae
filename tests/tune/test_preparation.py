"""What a search says of its target before any trial runs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest

from ofmu.preparer import prepare
from ofmu.tasks.preparation import Prepared
from tune.config import SearchConfig, search_config
from tune.preparation import resolve_objectives


@pytest.fixture(scope="module")
def config(tiny_mapping: dict[str, Any]) -> SearchConfig:
    return search_config({**tiny_mapping, "search": {"objectives": {"ks_statistic": "min", "model_utility": "max"}}})


@pytest.fixture(scope="module")
def prepared(config: SearchConfig) -> Prepared:
    return prepare(config.unlearn)


def said(config: SearchConfig, prepared: Prepared) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resolve_objectives(config, prepared)
    return " ".join(str(warning.message) for warning in caught)


def test_a_target_that_passes_the_ks_test_is_named_before_trials_run(config: SearchConfig, prepared: Prepared) -> None:
    assert prepared.reference_scores is not None
    passing = replace(prepared, target_scores=prepared.reference_scores)
    assert "does not tell the untouched target from the retrained model (forget_quality 1.00" in said(config, passing)


def test_nothing_is_said_where_the_ks_test_is_no_objective(config: SearchConfig, prepared: Prepared) -> None:
    assert prepared.reference_scores is not None
    other = search_config(config, {"extraction_strength": "min", "model_utility": "max"})
    assert "KS test" not in said(other, replace(prepared, target_scores=prepared.reference_scores))
