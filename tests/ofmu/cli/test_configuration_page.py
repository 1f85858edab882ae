"""The configuration page is the schema's: current, and with a sentence for every key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from ofmu.cli.configuration_page import page
from ofmu.methods.registry import BUILT_IN, method_class
from tune.compare.config import CompareConfig

DOCS = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def keys_without_meaning(schema: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_without_meaning(inner, f"{prefix}{key}.")
        elif not field.description:
            yield f"{prefix}{key}"


def test_the_page_in_the_docs_is_the_generators():
    assert DOCS.read_text(encoding="utf-8") == page()


def test_every_key_says_what_it_means():
    assert list(keys_without_meaning(CompareConfig, "")) == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_setting_of_a_method_says_what_it_means(name):
    settings = [key for key in keys_without_meaning(method_class(name).Config, f"method({name}).")]
    assert [key for key in settings if not key.endswith(").name")] == []


def test_the_page_shows_bounds_choices_and_defaults():
    lines = page().splitlines()
    (stage,) = [line for line in lines if line.startswith("| `engine.zero_stage`")]
    assert "whole number, ≥ 0, ≤ 3" in stage
    assert "`2`" in stage
    (backend,) = [line for line in lines if line.startswith("| `engine.backend`")]
    assert "`deepspeed` or `torch`" in backend
    (template,) = [line for line in lines if line.startswith("| `data.prompt_template`")]
    assert "\\n" in template
