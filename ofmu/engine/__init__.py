"""Engines: they run a model forward and backward. DeepSpeed's internals are used only here and in ``ofmu/vectors``."""
