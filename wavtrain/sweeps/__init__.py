"""Trials of a script over a search space, and what comes of them."""
