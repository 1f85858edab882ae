"""Language models: loading, saving, adapters, and the Hugging Face hub."""
