"""Engines: where a model runs. Only this room knows the insides of DeepSpeed."""
