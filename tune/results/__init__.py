"""Fronts, tables and reports of a search."""
