"""Files, the cache, the record of the environment, and imports of the user's modules."""
