"""The search space and the objectives."""
