"""Callbacks of a search."""
