"""Exact match, by the rule of each dataset's script."""

from __future__ import annotations


def lower(prediction: str, reference: str) -> float:
    """Return 1 if both texts are equal in lower case, else 0 (OCRVQA and IconQA; nothing is stripped)."""
    return float(prediction.lower() == reference.lower())


def gqa(prediction: str, reference: str) -> float:
    """Return 1 if the prediction, in lower case and without final periods, equals the reference as it is, else 0."""
    return float(prediction.rstrip(".").lower() == reference)
