"""Overrides, renamed keys, and serialisation of configs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SerializerFunctionWrapHandler, model_serializer

from ofmu.config.base import Section
from ofmu.config.files import read_mapping, validate
from ofmu.config.renamed import RENAMED_KEYS
from ofmu.errors import ConfigError
from ofmu.run_config import override
from tune.config import SearchConfig
from tune.space.parameter import default_space


def test_another_method_drops_the_settings_and_the_space_of_the_first_method() -> None:
    preset = read_mapping("quickstart")
    config = SearchConfig.read("quickstart", ["method.lr=0.001", "method.name=npo", "seed=3"])
    assert config.method.name == "npo"
    assert config.method.lr == 0.001
    assert config.method.batch_size == preset["method"]["batch_size"]
    assert config.search.space == default_space("npo")
    assert config.search.num_trials == preset["search"]["num_trials"]
    assert preset["method"]["inner_update"] == "normalized", "the preset itself is not changed"


def test_naming_the_same_method_changes_nothing() -> None:
    preset = read_mapping("quickstart")
    assert override(preset, ["method.name=ofmu"])["search"] == preset["search"]


def test_a_ctrl_c_during_serialisation_stays_a_keyboard_interrupt() -> None:
    """Pydantic raises an ordinary error instead. A search would take it for a callback's error and continue."""

    class Interrupted(Section):
        @model_serializer(mode="wrap")
        def _interrupt(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
            raise KeyboardInterrupt

    class Whole(Section):
        part: Interrupted = Interrupted()

    with pytest.raises(KeyboardInterrupt):
        Whole().model_dump(mode="json")


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_the_error_for_a_renamed_key_names_the_new_key(old: str, new: str) -> None:
    section, key = old.split(".")
    with pytest.raises(ConfigError, match=f"Config key '{old}' is called '{new}' since ofmu 0.2.0"):
        validate(SearchConfig, {section: {key: 1}})
    section, key = new.split(".")
    assert key in type(getattr(validate(SearchConfig, {}), section)).model_fields
