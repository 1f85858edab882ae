"""Comparison of methods at equal budget."""
