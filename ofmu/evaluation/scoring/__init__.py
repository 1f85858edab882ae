"""Scoring: per-row scores of a model on the evaluation sets."""
