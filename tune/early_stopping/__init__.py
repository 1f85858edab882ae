"""Early stopping of trials with several objectives."""
