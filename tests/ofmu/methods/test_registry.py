"""The names under which methods are found."""

from __future__ import annotations

import pytest

from ofmu.errors import ConfigError
from ofmu.methods.registry import BUILT_IN, method_class


def test_an_unknown_method_is_answered_with_each_name_once() -> None:
    for name in BUILT_IN:
        method_class(name)
    with pytest.raises(ConfigError) as caught:
        method_class("zzzzzzzz")
    listed = str(caught.value).partition("valid names are ")[2].split(", ")
    assert set(BUILT_IN) <= set(listed)
    assert len(listed) == len(set(listed))
