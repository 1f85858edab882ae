"""Reports for people: one HTML file per run, evaluation, search or comparison, which opens offline."""
