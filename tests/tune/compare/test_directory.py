from __future__ import annotations

import pytest

from tune.compare.directory import CompareDirectory


@pytest.mark.parametrize(
    ("mapping", "needs_code"),
    [
        ({"compare": {"methods": ["npo", "ofmu"]}}, False),
        ({"method": {"name": "mine", "module": "no_such_module", "strength": 2}}, True),
        ({"search": {"objectives": {"no_such_module:metric": "min", "model_utility": "max"}}}, True),
        ({"search": {"constraints": {"no_such_module:metric": {"min": 0}}}}, True),
        ({"evaluation": {"custom_metrics": ["no_such_module:metric"]}}, True),
    ],
)
def test_the_command_that_continues_allows_the_users_code_without_importing_it(tmp_path, mapping, needs_code):
    words = CompareDirectory(tmp_path / "a b").resume_words(mapping)
    code = ["--allow-code"] if needs_code else []
    assert words == ["ofmu", "compare", "--resume", str(tmp_path / "a b"), *code]
