"""Requests over time: rows of earlier requests stay forgotten, and are measured again after each later one."""
