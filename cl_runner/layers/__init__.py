"""Layers that methods put into a backbone: prompts, gated prefixes, low-rank increments, heads of a classifier."""
