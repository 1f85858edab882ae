"""Unlearning of text."""
