"""Unlearning tasks: what is forgotten, retained and scored."""
