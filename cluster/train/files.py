"""Names in the directory of a run in a worker group. This module needs neither Ray nor torch."""

RAY_TRAIN = "ray_train"
"""Folder of Ray Train's own files, in the directory of the first run of a group."""
