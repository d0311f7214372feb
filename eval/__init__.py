"""Scorers, answer generation and statistics."""
