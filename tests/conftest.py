"""What every test shares: one CPU thread, no network."""

from __future__ import annotations

import os

# Before torch is imported, here or in a subprocess: tests must not fight over cores or reach for a hub.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
