"""Scoring: a model and rows to per-row scores."""
