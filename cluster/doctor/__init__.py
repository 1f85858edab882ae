"""Checks of a machine or a cluster."""
