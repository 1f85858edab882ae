"""Files, the cache, the environment record and imported modules."""
