"""A refused value is answered in plain words, whatever types the setting takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from ofmu.config.value_words import refusal


class Inner(BaseModel):
    a: int = 0


class Settings(BaseModel):
    count: int = 0
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    finite: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    steps: Annotated[int, Field(ge=1, lt=9)] | Literal["auto"] = "auto"
    switch: bool = False
    names: tuple[str, ...] = ()
    table: dict[str, int] = {}
    kind: Literal["x", "y"] = "x"
    inner: Inner = Inner()
    file: Path = Path()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("count", "three", "it must be a whole number"),
        ("count", 1.5, "it must be a whole number"),
        ("count", [], "it must be a whole number"),
        ("share", "half", "it must be a number"),
        ("share", 0, "it must be greater than 0"),
        ("share", 2, "it must be at most 1"),
        ("finite", float("inf"), "it must be a finite number"),
        ("steps", 0, "it must be at least 1 or 'auto'"),
        ("steps", 9, "it must be less than 9 or 'auto'"),
        ("steps", "atuo", "it must be a whole number or 'auto'"),
        ("switch", "perhaps", "it must be true or false"),
        ("names", 3, "it must be a list"),
        ("table", 3, "it must be keys with values"),
        ("kind", "z", "it must be 'x' or 'y'"),
        ("inner", 3, "it must be keys with values"),
        ("file", 3, "it must be a path"),
    ],
)
def test_the_words_name_what_the_setting_takes(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({key: value})
    assert refusal(caught.value.errors()) == words


def test_a_reason_without_words_of_its_own_is_pydantics() -> None:
    error = {"type": "too_long", "msg": "Tuple should have at most 3 items", "ctx": {"max_length": 3}}
    assert refusal([error]) == "tuple should have at most 3 items"
    both = [{"type": "int_type", "msg": "Input should be a valid integer"}, error]
    assert refusal(both) == "it must be a whole number, or tuple should have at most 3 items"
