"""Language models: loading, saving, adapters and the hub."""
