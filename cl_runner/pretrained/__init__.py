"""Checkpoints of others: where they lie, what their files hold, whether they are what they say."""
