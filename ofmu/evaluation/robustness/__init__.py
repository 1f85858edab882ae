"""Attacks on an unlearned model, and its alignment with the retrained model."""
