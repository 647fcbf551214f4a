"""Retrieval of what earlier tasks learned: sentence vectors, keys, and what stands behind them. SLM (ICLR 2024)."""
