"""Tests of scorers and statistics."""
