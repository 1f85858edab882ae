"""Benchmarks and the user's own files, brought into one form: rows, row sets and tokenised examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ofmu.data.rows import Example, Row, RowSet, UnlearnData

if TYPE_CHECKING:
    from ofmu.data.load import load_data

__all__ = ["Example", "Row", "RowSet", "UnlearnData", "load_data"]


def __getattr__(name: str) -> Any:
    if name == "load_data":
        from ofmu.data.load import load_data

        return load_data
    raise AttributeError(f"module 'ofmu.data' has no attribute '{name}'")
