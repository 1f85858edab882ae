"""Rows of text: sources, encoding to token ids, and minibatches."""
