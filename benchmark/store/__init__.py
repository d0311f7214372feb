"""Finished work on disk: cells, the keys that tell whether they are stale, scores, provenance."""
