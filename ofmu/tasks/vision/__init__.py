"""Unlearning of images by classifiers."""
