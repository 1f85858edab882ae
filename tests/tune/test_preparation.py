"""What a search says of its target before any trial runs."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ofmu.errors import ConfigError
from ofmu.preflight import check_inputs
from ofmu.preparer import prepare
from ofmu.tasks.preparation import Prepared
from tune.config import SearchConfig, search_config
from tune.preparation import (
    check_constraints_can_be_kept,
    check_objectives_on_rows,
    resolve_objectives,
    write_reference_metrics,
)
from tune.rundir import search_dir
from tune.rundir.search_dir import RunDirectory
from tune.space.constraints import resolve_limits


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


def test_the_reference_is_written_where_it_is_read(
    config: SearchConfig, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_dir, "REFERENCE", "renamed.json")
    run = RunDirectory(tmp_path)
    write_reference_metrics(run, config, prepared)
    assert run.read_reference()["ks_statistic"] == 0.0
    write_reference_metrics(RunDirectory(tmp_path / "without"), config, replace(prepared, reference_scores=None))
    assert not (tmp_path / "without").exists()


@pytest.mark.parametrize(
    ("columns", "lacking"),
    [
        ({}, "paraphrased answer"),
        ({"paraphrased_answer": "It was she."}, "perturbed answers"),
        ({"paraphrased_answer": "It was she.", "perturbed_answer": ["He."]}, None),
    ],
)
def test_an_objective_that_the_rows_do_not_allow_is_named_before_the_preparation(
    columns: dict[str, Any], lacking: str | None, tmp_path: Path
) -> None:
    for name, row in (("forget", {"question": "Who?", "answer": "She.", **columns}), ("retain", {"text": "There."})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    data = {"source": "files", **{name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}}
    named = {"data": data, "search": {"objectives": {"ks_statistic": "min", "model_utility": "max"}}}
    for mapping, fails in (({"data": data}, False), (named, lacking is not None)):
        settings = search_config(mapping)
        rows = check_inputs(settings.unlearn)
        assert rows is not None
        if not fails:
            check_objectives_on_rows(settings, rows)
            continue
        with pytest.raises(ConfigError, match=rf"'ks_statistic' cannot be computed .*forget row 1 has no {lacking}\)"):
            check_objectives_on_rows(settings, rows)
    check_objectives_on_rows(search_config(named), None)


def bounded(config: SearchConfig, constraints: dict[str, Any], **objectives: str) -> SearchConfig:
    mapping = config.model_dump(mode="json")
    mapping["search"]["constraints"] = constraints
    return search_config(mapping, objectives or None)


def test_the_targets_metrics_turn_shares_into_numbers(config: SearchConfig, prepared: Prepared) -> None:
    asked = bounded(config, {"retain_probability": {"min": "0.95 of target"}, "kl_retain": {"max": 0.01}})
    target = check_constraints_can_be_kept(asked, prepared)
    assert target["kl_retain"] == 0.0
    limits, unknown = resolve_limits(asked.search.constraints, target)
    assert limits[0].value == pytest.approx(0.95 * target["retain_probability"])
    assert unknown == ()
    assert check_constraints_can_be_kept(config, prepared) == {}


def test_utility_that_the_target_lacks_is_refused_before_trials_run(config: SearchConfig, prepared: Prepared) -> None:
    with pytest.raises(ConfigError, match=r"keep model_utility ≥ 0\.999, since the untouched target has"):
        check_constraints_can_be_kept(bounded(config, {"model_utility": {"min": 0.999}}), prepared)


def test_a_bound_that_target_and_retrained_model_violate_is_refused_or_named(
    config: SearchConfig, prepared: Prepared
) -> None:
    with pytest.raises(ConfigError, match=r"Neither the untouched target .* nor the retrained model"):
        check_constraints_can_be_kept(bounded(config, {"forget_answer_words": {"max": 0.0}}), prepared)
    with pytest.warns(UserWarning, match="only a model that forgets more than the retrained one does"):
        check_constraints_can_be_kept(bounded(config, {"forget_probability": {"max": 0.0}}), prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The target violates this, and the retrained model keeps it: this is what forgetting is for.
        check_constraints_can_be_kept(bounded(config, {"ks_statistic": {"max": 0.01}}), prepared)


def test_the_retrained_model_keeps_any_bound_on_the_depth(config: SearchConfig, prepared: Prepared) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = check_constraints_can_be_kept(bounded(config, {"unlearning_depth": {"min": 0.9}}), prepared)
    assert target["unlearning_depth"] == 0.0


def test_a_metric_that_the_data_do_not_give_is_refused(config: SearchConfig, prepared: Prepared) -> None:
    with pytest.raises(ConfigError, match="names forget_letter_accuracy, which cannot be computed on this data"):
        check_constraints_can_be_kept(bounded(config, {"forget_letter_accuracy": {"max": 0.3}}), prepared)


def test_what_only_a_trial_measures_needs_no_score_of_the_target(config: SearchConfig, prepared: Prepared) -> None:
    asked = bounded(
        config, {"sampled_leakage": {"max": "0.5 of target"}}, relearning_probability="min", model_utility="max"
    )
    assert resolve_objectives(asked, prepared).objectives == asked.objectives
    target = check_constraints_can_be_kept(asked, prepared)
    assert resolve_limits(asked.search.constraints, target) == ((), ("sampled_leakage",))
