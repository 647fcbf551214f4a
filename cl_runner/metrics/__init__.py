"""Scores of answers, one number in percent for each example, each named by its definition. Nothing here needs torch
but BERTScore."""
