"""Linear algebra on gradients where they live: replicated, or one ZeRO partition on each rank."""
