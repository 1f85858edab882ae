"""Metrics: functions of per-row scores."""
