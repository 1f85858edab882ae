"""The configs of searches and comparisons: which sections each has, and what an old key is answered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.config.files import preset_names, read_mapping, validate
from ofmu.config.renamed import RENAMED_KEYS
from ofmu.errors import ConfigError, RunError
from ofmu.io.environment import environment
from ofmu.methods.registry import method_class
from tune import AskTell, CompareConfig, Comparison, ParetoSearch, SearchConfig, SearchResult
from tune.config import search_config

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
