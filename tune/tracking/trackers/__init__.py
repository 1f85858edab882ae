"""The trackers, as callbacks of a search."""
