"""``docs/methods.md`` is the page that the registered methods give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ofmu.methods import BUILT_IN
from ofmu.methods.__main__ import first_sentence, page, space_text, value_text
from ofmu.methods.registry import method_class

DOCS = Path(__file__).resolve().parents[3] / "docs" / "methods.md"


def test_the_page_in_the_docs_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == page() + "\n", "run: python -m ofmu.methods > docs/methods.md"


def test_every_method_has_one_line_with_all_cells() -> None:
    lines = [line for line in page().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(BUILT_IN)
    for line, name in zip(lines, BUILT_IN, strict=True):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert len(cells) == 7
        assert cells[1] == method_class(name).title.replace("|", "\\|")
        assert "arXiv" in cells[4] or "et al." in cells[4]
        assert re.search("[=←∇]", cells[3]), f"the docstring of {name} must begin with its formula"
        assert all(f"`{key}`" in cells[5] for key in method_class(name).space)
        assert all(f"`{key}`" in cells[6] for key in method_class(name).published)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L = 0.5 x\n  + y.\n\nMore.", "L = 0.5 x + y"),
        ("One. Two.", "One"),
        ("min L s.t. R ≤ ε. See Doe et al. for more.", "min L s.t. R ≤ ε"),
        ("No stop\n\nSecond paragraph.", "No stop"),
    ],
)
def test_the_first_sentence_ends_at_a_full_stop_and_not_at_a_decimal_point(text: str, expected: str) -> None:
    assert first_sentence(text) == expected


def test_ranges_and_values_have_the_form_of_a_config() -> None:
    assert space_text({"low": 1e-5, "high": 3e-3, "log": True}) == "1e-05 … 0.003 log"
    assert space_text({"low": 0.0, "high": 2.0}) == "0 … 2"
    assert space_text({"choices": ["cosine", 0.5, None]}) == "cosine, 0.5, None"
    assert [value_text(value) for value in (True, 1200.0, "sgd")] == ["True", "1200", "sgd"]
