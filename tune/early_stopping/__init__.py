"""Multi-objective early stopping of trials."""
