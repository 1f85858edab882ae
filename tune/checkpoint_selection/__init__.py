"""Selecting the round of a trial from which its model comes, by the front of the search."""
