"""The configs of searches and comparisons: which sections each has, and what an old key is answered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from ofmu.config.files import preset_names, read_mapping, validate
from ofmu.config.renamed import RENAMED_KEYS
from ofmu.errors import ConfigError, RunError
from ofmu.io.environment import environment
from ofmu.methods.registry import method_class
from ofmu.run_config import override
from tune import AskTell, CompareConfig, Comparison, ParetoSearch, SearchConfig, SearchResult
from tune.config import fix_settings, search_config, searched_and_named

SECTIONS = ("evaluation", "search")


@pytest.mark.parametrize("name", preset_names())
def test_a_search_leaves_out_the_section_of_a_comparison(name):
    mapping = read_mapping(name)
    whole = CompareConfig.read(name)
    assert whole.compare.model_dump(mode="json", exclude_unset=True) == mapping.get("compare", {})
    search = SearchConfig.read(name)
    assert "compare" not in search.model_dump()
    assert search_config(mapping) == search_config(whole) == search
    assert whole.unlearn == search.unlearn


def test_a_search_section_may_write_directions_out():
    search = {"objectives": {"ks_statistic": "minimize", "model_utility": "maximize"}}
    assert validate(SearchConfig, {"search": search}).objectives == {"ks_statistic": "min", "model_utility": "max"}


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_is_answered_with_the_new_one(old, new, tmp_path):
    section, name = old.split(".")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({section: {name: 1}}))
    sentence = f"Config key '{old}' is called '{new}' since ofmu 0.2.0: rename it"
    for read in (CompareConfig.read, SearchConfig.read):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path / "old.yaml")
        assert str(caught.value) == sentence
    with pytest.raises(ConfigError) as caught:
        SearchConfig.read("quickstart", [f"{old}=1"])
    assert str(caught.value) == sentence


def test_every_new_key_is_a_key_and_no_old_key_is():
    assert len(RENAMED_KEYS) == 5
    fields = {
        name: set(field.annotation.model_fields)
        for name, field in SearchConfig.model_fields.items()
        if name in SECTIONS
    }
    fields["method"] = set(method_class("ofmu").Config.model_fields)
    for old, new in RENAMED_KEYS.items():
        section, name = new.split(".")
        assert name in fields[section]
        assert old.split(".")[1] not in fields[section]


def test_an_old_key_in_a_space_is_answered_with_the_new_one():
    wanted = "'method.forget_level' is called 'method.forget_margin' since ofmu 0.2.0: rename it"
    spaces: dict[str, dict[str, Any]] = {
        "search.space.method.forget_level": {"search": {"space": {"method.forget_level": {"low": 0.1, "high": 1}}}},
        "compare.space": {"compare": {"methods": "ofmu,npo", "space": {"method.forget_level": {"low": 0.1}}}},
        "compare.methods": {"compare": {"methods": "ofmu,npo", "spaces": {"ofmu": {"method.forget_level": 1}}}},
    }
    for place, mapping in spaces.items():
        with pytest.raises(ConfigError) as caught:
            Comparison({"compare": {"methods": "ofmu,npo"}, **mapping}, run_dir="never")
        assert wanted in str(caught.value), place


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A search whose stored config has the keys of version 0.1."""
    run_dir = tmp_path / "old"
    with AskTell({"search": {"num_trials": 3}}, run_dir=run_dir) as search:
        trial = search.ask()
        assert trial is not None
        search.tell(trial, {"ks_statistic": 0.5, "model_utility": 0.5})
    stored = yaml.safe_load((run_dir / "config.yaml").read_text())
    for old, new in RENAMED_KEYS.items():
        section = stored[old.split(".")[0]]
        section[old.split(".")[1]] = section.pop(new.split(".")[1], None)
    stored["search"]["space"]["method.forget_level"] = stored["search"]["space"].pop("method.forget_margin")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(stored))
    return run_dir


def test_an_old_run_is_named_as_one(old_run, tmp_path):
    uses: list[Callable[[], Any]] = [
        lambda: ParetoSearch.resume(old_run),
        lambda: AskTell.resume(old_run, ["search.num_trials=4"]),
        lambda: SearchResult.load(old_run),
        lambda: AskTell({}, run_dir=tmp_path / "new", warm_start=old_run),
    ]
    for use in uses:
        with pytest.raises(RunError) as caught:
            use()
        assert str(caught.value) == (
            f"{old_run} was written by ofmu 0.1, whose config key 'method.forget_level' is called "
            "'method.forget_margin' since ofmu 0.2.0: start a new search, or continue this one with ofmu 0.1"
        )
    assert not (tmp_path / "new").exists()


def test_an_old_comparison_is_named_as_one(tmp_path):
    (tmp_path / "searches").mkdir()
    stored = {"compare": {"methods": ["ofmu", "npo"]}, "search": {"max_concurrent": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    (tmp_path / "environment.json").write_text(json.dumps(environment()))
    with pytest.raises(RunError, match=r"was written by ofmu 0\.1.*'search\.max_concurrent_trials'.*new comparison"):
        Comparison.resume(tmp_path)


SEARCHED = {
    "method": {"inner_steps": 2},
    "search": {
        "space": {
            "method.outer_steps": {"low": 2, "high": 9},
            "method.inner_update": ["sgd", "adamw"],
            "method.inner_lr": {"low": 0.01, "high": 0.1, "when": {"method.inner_update": "sgd"}},
        }
    },
}


@pytest.mark.parametrize(
    ("entries", "fixed", "left"),
    [
        (["method.outer_steps=5"], {"method.outer_steps": 5}, {"method.inner_update", "method.inner_lr"}),
        (["method={outer_steps: 5}"], {"method.outer_steps": 5}, {"method.inner_update", "method.inner_lr"}),
        (["method.inner_update=adamw"], {"method.inner_update": "adamw"}, {"method.outer_steps"}),
        (
            ["method.inner_update=sgd", "seed=3"],
            {"method.inner_update": "sgd"},
            {"method.outer_steps", "method.inner_lr"},
        ),
        (["method.inner_steps=5", "search.num_trials=4"], {}, None),
        (["search.space.method.outer_steps=5"], {}, None),
    ],
)
def test_a_value_on_the_command_line_takes_its_setting_out_of_the_search(entries, fixed, left):
    mapping = override(SEARCHED, entries)
    assert searched_and_named(mapping, entries) == fixed
    space = search_config(fix_settings(mapping, fixed)).search.space
    assert {key: spec.value for key, spec in space.items() if spec.kind == "fixed"} == fixed | (
        {"method.outer_steps": 5} if left is None and "search.space" in entries[0] else {}
    )
    if left is not None:
        assert {key for key, spec in space.items() if spec.kind != "fixed"} == left


def test_a_variant_on_the_command_line_takes_what_it_sets_out_of_the_search():
    entries = ["method.variant=first_order"]
    mapping = override(read_mapping("quickstart"), entries)
    named = searched_and_named(mapping, entries, through_variant=True)
    assert named == {"method.decorrelation": "none", "method.penalty_weight": 0.0}
    left = {
        key for key, spec in search_config(fix_settings(mapping, named)).search.space.items() if spec.kind != "fixed"
    }
    rates, counts = {"method.inner_lr", "method.outer_lr"}, {"method.inner_steps", "method.outer_steps"}
    assert left == {"method.forget_margin", *rates, *counts}
    assert searched_and_named(mapping, entries) == {}
    wanted = [*entries, "search.space.method.decorrelation.choices=[none,projection,cosine]"]
    drawn = searched_and_named(override(read_mapping("quickstart"), wanted), wanted, through_variant=True)
    assert drawn == {"method.penalty_weight": 0.0}


@pytest.mark.parametrize("schema", [SearchConfig, CompareConfig])
@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"variant": 1}, r"'method\.variant' has the value 1, but it must be 'paper'"),
        ({"variant": ["paper"]}, r"'method\.variant' has the value \['paper'\], but it must be 'paper'"),
        ({"name": "mine", "module": 3}, r"method\.module must be the name of a Python module: write text"),
    ],
)
def test_a_variant_or_a_module_that_is_no_text_is_refused_in_one_sentence(schema, method, sentence):
    with pytest.raises(ConfigError, match=sentence):
        validate(schema, {"method": method})


def test_a_value_and_a_range_of_one_setting_contradict_each_other():
    entries = ["method.outer_steps=5", "search.space.method.outer_steps.low=3"]
    with pytest.raises(ConfigError, match=r"names both method\.outer_steps and search\.space\.method\.outer_steps"):
        searched_and_named(override(SEARCHED, entries), entries)


def test_a_value_of_a_setting_of_the_methods_own_space_counts_too():
    entries = ["method.outer_steps=5"]
    mapping = override(read_mapping("quickstart"), entries)
    assert searched_and_named(mapping, entries) == {"method.outer_steps": 5}


@pytest.mark.slow
def test_no_trial_draws_a_setting_that_the_command_line_names(tmp_path, capsys, monkeypatch):
    """The whole command, with the draws of an ask/tell loop in place of the trials on Ray."""
    seen = []

    def run(search):
        with AskTell(search.config, num_trials=5, run_dir=tmp_path / "run") as loop:
            while trial := loop.ask():
                seen.append((trial.role, trial.config.method.outer_steps))
                loop.tell(trial, {"ks_statistic": 0.5, "model_utility": 0.5})
            return loop.result()

    monkeypatch.setattr("tune.search.ParetoSearch.run", run)
    assert main(["search", "method.outer_steps=7", "--run-dir", str(tmp_path / "none")]) == 0
    assert "method.outer_steps is 7 in every trial but the baselines, and is not searched" in capsys.readouterr().out
    assert {steps for role, steps in seen if role == "sampled"} == {7}


def test_a_comparison_refuses_a_value_that_every_search_draws(capsys, tmp_path):
    command = ["compare", "--methods", "ofmu,npo", "method.outer_steps=5", "--run-dir", str(tmp_path / "run")]
    assert main(command) == 1
    assert "narrow its range by compare.spaces.ofmu.method.outer_steps.low" in capsys.readouterr().err


def test_a_comparison_says_how_its_config_is_named(capsys):
    assert main(["compare", "--methods", "ofmu,npo", "mine.yaml"]) == 1
    assert "'mine.yaml' is no setting" in (said := capsys.readouterr().err)
    assert "--benchmark" in said


@pytest.mark.parametrize(
    ("entries", "notes"),
    [
        (["method.penalty_weight=0.5"], ["method.penalty_weight is 0.5, which replaces the 0.0 of method.variant"]),
        (
            ["search.space.method.penalty_weight=[0.1, 0.5]"],
            ["The search draws method.penalty_weight, and method.variant 'first_order' sets it to 0.0"],
        ),
        (
            ["search.space.method.penalty_weight=0.5", "search.space.method.inner_lr=[0.1, 0.2]"],
            ["The search sets method.penalty_weight to 0.5, and method.variant 'first_order' sets it to 0.0"],
        ),
        (["search.space.method.penalty_weight=0.0", "search.space.method.inner_lr=[0.1, 0.2]"], []),
        (["method.outer_steps=5"], []),
    ],
)
def test_a_search_says_which_settings_of_a_variant_its_trials_replace(entries, notes, tmp_path, recwarn):
    mapping = override({}, ["method.variant=first_order", *entries])
    ParetoSearch(mapping, run_dir=tmp_path / "run")
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == len(notes)
    assert all(line.startswith(note) for line, note in zip(said, notes, strict=True))
