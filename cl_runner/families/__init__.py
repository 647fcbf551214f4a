"""Families of models: each turns any batch into loss, logits and targets, so that no method knows the architecture."""
