"""The example of transformers' Trainer trains and logs the method's numbers."""

from __future__ import annotations

from examples.hf_trainer import train


def test_the_example_trains_with_the_method(tmp_path):
    row = train("spider", str(tmp_path))
    assert row["step"] == 24 and 0.3 < row["spider/restored_fraction"] < 0.7
    assert all(key.count("/") == key.startswith("spider/") for key in row)
