"""What overrides make of a config."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SerializerFunctionWrapHandler, model_serializer

from ofmu.config.base import Section
from ofmu.config.files import read_mapping
from ofmu.run_config import override
from tune.config import SearchConfig
from tune.space.parameter import default_space


def test_another_method_leaves_the_first_ones_settings_and_space_behind() -> None:
    preset = read_mapping("quickstart")
    config = SearchConfig.read("quickstart", ["method.lr=0.001", "method.name=npo", "seed=3"])
    assert config.method.name == "npo"
    assert config.method.lr == 0.001
    assert config.method.batch_size == preset["method"]["batch_size"]
    assert config.search.space == default_space("npo")
    assert config.search.num_trials == preset["search"]["num_trials"]
    assert preset["method"]["inner_update"] == "normalized", "the preset itself is not changed"


def test_naming_the_method_that_is_already_there_changes_nothing() -> None:
    preset = read_mapping("quickstart")
    assert override(preset, ["method.name=ofmu"])["search"] == preset["search"]


def test_a_ctrl_c_during_serialisation_stays_one() -> None:
    """Pydantic makes an ordinary error of it, which a search would take for a callback's and go on."""

    class Interrupted(Section):
        @model_serializer(mode="wrap")
        def _interrupt(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
            raise KeyboardInterrupt

    class Whole(Section):
        part: Interrupted = Interrupted()

    with pytest.raises(KeyboardInterrupt):
        Whole().model_dump(mode="json")
