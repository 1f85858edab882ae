"""Takes a run to machines: Ray Train around ofmu's trainer, and the settings of a cluster."""
