"""Config keys that version 0.2.0 renamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RENAMED_KEYS = {
    "method.forget_level": "method.forget_margin",
    "evaluation.rows": "evaluation.max_rows",
    "evaluation.functions": "evaluation.custom_metrics",
    "search.rungs": "search.early_stopping",
    "search.max_concurrent": "search.max_concurrent_trials",
}
"""Old dotted key to new dotted key."""


def renamed_key_sentence(key: str) -> str | None:
    """Return the sentence that names the new key; None if ``key`` was not renamed."""
    new = RENAMED_KEYS.get(key)
    return None if new is None else f"Config key '{key}' is called '{new}' since ofmu 0.2.0: rename it"


def renamed_keys_in(mapping: Mapping[str, Any]) -> Iterator[str]:
    """Yield the old keys that a config's mapping holds."""
    for key in RENAMED_KEYS:
        section, _, name = key.partition(".")
        if name in (mapping.get(section) or {}):
            yield key
