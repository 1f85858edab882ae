"""Supervised training. Preparation trains the target and the retrained model with it."""
