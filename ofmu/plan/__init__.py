"""What a run needs before anything is loaded: memory by component and phase, gradient evaluations, and tokens."""
