"""``ofmu forget``: from an erasure request through a search to evidence."""
