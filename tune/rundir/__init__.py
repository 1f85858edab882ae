"""The run directory of a search: the names of its files, its lock, and its copy at a URI."""
