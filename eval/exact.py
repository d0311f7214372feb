"""Exact match, by the rule of each dataset's script."""

from __future__ import annotations


def lower(prediction: str, reference: str) -> float:
    """Return 1 if both texts are equal in lower case (OCRVQA and IconQA: nothing is stripped), else 0."""
    return float(prediction.lower() == reference.lower())


def gqa(prediction: str, reference: str) -> float:
    """Return 1 if the prediction, lower case, without final periods, is the reference as is, else 0."""
    return float(prediction.rstrip(".").lower() == reference)
