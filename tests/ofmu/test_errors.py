"""Hints at the name that the user may have meant."""

from __future__ import annotations

from ofmu.errors import nearest_name


def test_a_long_list_of_names_is_cut() -> None:
    names = [f"name{number:03}" for number in range(150)]
    assert nearest_name("zzz", names, limit=3) == "valid names are name000, name001, name002 and 147 others"
    assert nearest_name("zzz", names[:3], limit=3) == "valid names are name000, name001, name002"
    assert nearest_name("nme007", names, limit=3) == "did you mean 'name007'?"
    assert nearest_name("zzz", names).count("name0") == 100
