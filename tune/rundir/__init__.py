"""The run directory of a search."""
