"""Checks of the benchmark's foundations: the data, the prompts, the paper's tables."""
