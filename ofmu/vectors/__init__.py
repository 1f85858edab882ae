"""Linear algebra on gradients where they are stored: replicated, or one ZeRO partition on each rank."""
