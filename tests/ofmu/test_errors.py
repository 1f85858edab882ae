"""Hints at the name that the user may have meant."""

from __future__ import annotations

from ofmu.errors import nearest_name


def test_a_long_list_of_names_is_cut() -> None:
    names = [f"name{number:03}" for number in range(150)]
    assert nearest_name("zzz", names, limit=3) == "valid names are name000, name001, name002 and 147 others"
    assert nearest_name("zzz", names[:3], limit=3) == "valid names are name000, name001, name002"
    assert nearest_name("nme007", names, limit=3) == "did you mean 'name007'?"
    assert nearest_name("zzz", names).count("name0") == 100


def test_a_rate_of_another_method_is_answered_with_all_rates_of_this_one() -> None:
    ofmu, npo = ["inner_lr", "outer_lr", "inner_lr_scale", "inner_steps", "outer_steps"], ["lr", "steps", "round_steps"]
    assert nearest_name("lr", ofmu, "method.") == "did you mean 'method.inner_lr' or 'method.outer_lr'?"
    assert nearest_name("outer_steps", npo) == "did you mean 'steps'?"
    assert nearest_name("iner_lr", ofmu) == "did you mean 'inner_lr'?"
    assert nearest_name("x", [f"{letter}_x" for letter in "abcd"]).count("_x'") == 1
