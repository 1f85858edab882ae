"""Callbacks of a search: the interface, the list of callbacks, the console and Prometheus."""
