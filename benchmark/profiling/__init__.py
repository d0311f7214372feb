"""Measurements and checks of machines: step cost, scorers, GPUs, missing requirements."""
