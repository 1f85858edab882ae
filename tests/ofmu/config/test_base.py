from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ofmu.config.base import Section
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import BUILT_IN, method_class
from tune.config import SearchConfig


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    for each in kind.__subclasses__():
        yield from sections(each)


@pytest.mark.parametrize(
    "kind", [each for each in sections(Section) if each.added_later], ids=lambda kind: kind.__name__
)
def test_settings_that_were_added_later_are_stored_only_if_they_are_set(kind: type[Section]) -> None:
    assert kind.added_later <= kind.model_fields.keys()
    assert not kind.added_later & kind().model_dump().keys()
    assert not kind.added_later & kind().model_dump(mode="json").keys()


def test_a_config_that_an_older_version_stored_equals_the_same_config_now() -> None:
    stored: dict[str, Any] = SearchConfig().model_dump(mode="json")
    assert "group_by_length" not in stored["method"]
    assert "product_share" not in stored["method"]
    changed = SearchConfig(method={"group_by_length": True, "product_share": 0.5}).model_dump(mode="json")
    assert changed["method"] == {**stored["method"], "group_by_length": True, "product_share": 0.5}
    assert SearchConfig.model_validate(changed).model_dump(mode="json") == changed


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_method_without_minibatches_says_that_grouping_has_no_effect(name: str) -> None:
    settings: MethodConfig = method_class(name).Config(group_by_length=True)
    notes = [note for note in settings.ineffective() if "group_by_length" in note]
    assert len(notes) == (name in ("influence", "repselect"))
