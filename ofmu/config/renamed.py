"""Config keys that version 0.2.0 renamed."""

from __future__ import annotations

RENAMED_KEYS = {
    "method.forget_margin": "method.forget_margin",
    "evaluation.max_rows": "evaluation.max_rows",
    "evaluation.custom_metrics": "evaluation.custom_metrics",
    "search.early_stopping": "search.early_stopping",
    "search.max_concurrent_trials": "search.max_concurrent_trials",
}
"""Old dotted key to new dotted key."""


def renamed_key_sentence(key: str) -> str | None:
    """Return the sentence that names the new key; None if ``key`` was not renamed."""
    new = RENAMED_KEYS.get(key)
    return None if new is None else f"Config key '{key}' is called '{new}' since ofmu 0.2.0: rename it"
