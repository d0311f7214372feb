"""Every method equals its float64 transcription over several AdamW steps."""

from __future__ import annotations

import pytest
import torch

from methods.registry import METHODS
from tests.methods.checks import CHECKS

IN_TRAINING = [name for name, entry in METHODS.items() if entry.kind == "training"]


def test_every_method_with_a_class_has_a_check():
    """Those of adapters are in test_adapters.py, which asserts the same of them."""
    assert set(CHECKS) == {name for name, entry in METHODS.items() if entry.cls and entry.kind != "adapter"}


@pytest.mark.parametrize("method", CHECKS)
def test_method_equals_its_transcription(method):
    CHECKS[method]()


@pytest.mark.parametrize("method", IN_TRAINING)
def test_method_equals_its_transcription_in_float32(method):
    CHECKS[method](dtype=torch.float32, tolerance=2e-5)
