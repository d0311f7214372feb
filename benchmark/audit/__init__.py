"""Checks of what the benchmark stands on: the data, the prompts, the paper's tables."""
