"""What every test shares: one CPU thread, no network."""

from __future__ import annotations

import os

import pytest

# Before torch is imported, here or in a subprocess: tests must not fight over cores or reach for a hub.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# Helpers that compare show what differs, as tests do.
pytest.register_assert_rewrite("four_tasks", "gradients", "stored")
