"""Importance of weights, selection of some of them, training only those, and storing only what changed."""
