from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.config.files import validate
from ofmu.erasure.workspace import Workspace
from ofmu.errors import ConfigError
from ofmu.run_config import UnlearnConfig
from tune.config import SearchConfig
from tune.erasure.settings import check_settings, prompt_settings, request_settings, run_settings, search_settings


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"path": "other"}},
        {"data": {"forget": "f.jsonl"}},
        {"data": {"source": "tofu"}},
        {"search": {"num_trials": 9}},
        {"search": {"keep_models": "none"}},
    ],
)
def test_settings_that_the_command_makes_are_refused(settings: dict[str, dict[str, str]]):
    (section, values), *_ = settings.items()
    with pytest.raises(ConfigError, match=f"{section}.{next(iter(values))} is set by ofmu forget"):
        check_settings(settings)
    check_settings({"engine": {"device": "cpu"}, "search": {"sampler": "random"}, "model": {"attention": "eager"}})


@pytest.mark.parametrize("source", ["cifar10", "images"])
def test_images_are_refused(source: str):
    with pytest.raises(ConfigError, match=f"takes rows of text, and data.source '{source}' holds images: use ofmu"):
        check_settings({"data": {"source": source}})


def test_another_revision_than_the_default_branch_is_refused():
    sentence = (
        "takes the default branch of MODEL, and model.revision is 'v2': download that revision, and name its folder"
    )
    with pytest.raises(ConfigError, match=sentence):
        check_settings({"model": {"revision": "v2"}})
    check_settings({"model": {"revision": None}})


def test_the_search_has_the_rows_and_the_budget(tmp_path: Path):
    home = Workspace(tmp_path)
    given = {"engine": {"device": "cpu"}, "data": {"columns": {"question": "q"}, "max_length": 77}}
    mapping = request_settings("/a/model", None, given)
    search = search_settings(mapping, home, has_holdout=True, trials=9, hours=2.0)
    config = validate(SearchConfig, search)
    assert (config.model.path, config.model.is_target, config.reference.source) == ("/a/model", True, "none")
    assert config.data.forget == str(tmp_path / "rows" / "forget.jsonl")
    assert config.data.holdout == str(tmp_path / "rows" / "holdout.jsonl")
    # The rows are written with the default columns, whatever columns the given files have.
    assert config.data.columns == SearchConfig().data.columns
    assert config.data.max_length == 77
    assert (config.search.num_trials, config.search.max_hours) == (9, pytest.approx(1.2))
    unbounded = search_settings(mapping, home, has_holdout=False, trials=9, hours=None)
    assert validate(SearchConfig, unbounded).search.max_hours is None
    assert validate(SearchConfig, unbounded).data.holdout is None
    assert given == {"engine": {"device": "cpu"}, "data": {"columns": {"question": "q"}, "max_length": 77}}


@pytest.mark.parametrize(
    ("section", "value"),
    [("cluster", {"num_workers": 2}), ("cluster", {"address": "auto"}), ("tracking", ["tensorboard"])],
)
def test_a_request_takes_the_sections_of_a_search(tmp_path: Path, section: str, value: Any):
    mapping = request_settings("/m", None, {section: value, "engine": {"zero_stage": 3}, "search": {"seed": 3}})
    assert validate(UnlearnConfig, run_settings({**mapping, "seed": 2})).engine.zero_stage == 3
    mapping = {**mapping, "search": {}}
    config = validate(SearchConfig, search_settings(mapping, Workspace(tmp_path), has_holdout=False, trials=3, hours=1))
    assert getattr(config, section) != getattr(SearchConfig(), section)
    with pytest.raises(ConfigError, match=r"'clustr': did you mean"):
        run_settings({**mapping, "clustr": {}})


def test_a_model_is_named_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    model = request_settings("m", "~/m", {})["model"]
    assert (model["path"], model["base"]) == (str(tmp_path / "m"), str(tmp_path / "m"))
    assert request_settings("org/m", None, {})["model"]["path"] == "org/m"


def test_a_base_gives_a_retrained_reference_unless_another_is_named(tmp_path: Path):
    assert request_settings("/m", "/b", {})["reference"] == {"source": "retrain"}
    named = {"reference": {"source": "model", "path": "/r"}}
    assert request_settings("/m", "/b", named)["reference"] == named["reference"]


def test_prompts_are_those_of_the_models_own_run(tmp_path: Path):
    data = {"prompt_template": "Q {question} A", "max_length": 33, "source": "files", "forget": "secret.jsonl"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    (tmp_path / "model").mkdir()
    expected = {"prompt_template": "Q {question} A", "max_length": 33}
    assert prompt_settings(str(tmp_path / "model")) == expected
    mapping = request_settings(str(tmp_path / "model"), None, {"data": {"max_length": 44}})
    assert mapping["data"] == {"prompt_template": "Q {question} A", "max_length": 44}
    assert prompt_settings(str(tmp_path / "nothing")) == {}
