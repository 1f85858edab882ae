"""Results of a search: front, tables, plot and reports."""
