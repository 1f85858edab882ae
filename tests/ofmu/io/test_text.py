"""Counts as words."""

from __future__ import annotations

from ofmu.io.text import counted


def test_one_thing_is_singular() -> None:
    assert [counted(number, "other seed") for number in (0, 1, 2)] == ["0 other seeds", "1 other seed", "2 other seeds"]
