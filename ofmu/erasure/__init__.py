"""Erasure requests: which rows a request is about, and the evidence of what was done and measured."""
