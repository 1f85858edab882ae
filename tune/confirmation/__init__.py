"""Points of a front that run again on further seeds, for a search and for a comparison."""
