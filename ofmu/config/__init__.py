"""Config files: the base class of sections, reading of YAML, and dotted overrides."""
