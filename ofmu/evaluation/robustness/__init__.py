"""Robustness: attacks on an unlearned model, and the model's alignment with the retrained model."""
