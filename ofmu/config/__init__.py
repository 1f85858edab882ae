"""Config files: sections, YAML in and out, dotted overrides."""
