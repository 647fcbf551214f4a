"""Measures of general ability. Each probe is a dataclass in a file of its own; its options stand under probe.<node>."""
