"""Exported models: folders that others load, that answer as the run did, and that say what they are."""
