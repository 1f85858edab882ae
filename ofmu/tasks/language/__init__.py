"""Unlearning of text by causal language models."""
