"""Unlearning of images."""
