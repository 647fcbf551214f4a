"""Continual learning of language models: one command from a configuration to matrices, snapshots and a report."""

__version__ = "0.7.0"
