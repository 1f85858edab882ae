"""Benchmarks and the user's own files in one form: rows, row sets and tokenised examples."""
