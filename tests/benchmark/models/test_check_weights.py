"""Checkpoints whose numbers or sizes cannot be meant, seen before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmark.core.errors import UserError
from benchmark.models import check_weights
from benchmark.spec import ROOT
from tests.benchmark.models import tiny


def folder(path: Path, config: dict | None = None, **tensors: torch.Tensor) -> Path:
    """Write a checkpoint of some tensors."""
    save_file({"a.weight": torch.ones(4, 6), **tensors}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(tmp_path, dtype, value):
    extremes = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, 0.0], dtype=dtype)
    check_weights.check(folder(tmp_path, good=extremes, position_ids=torch.arange(3)))
    extremes[2] = value
    with pytest.raises(UserError, match=r"model\.safetensors: bad has 1 numbers that are not finite"):
        check_weights.check(folder(tmp_path, bad=extremes))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.int8])
def test_weights_that_are_no_floating_point_numbers(tmp_path, dtype):
    with pytest.raises(UserError, match=r"b\.weight has the dtype \w+, but only F64"):
        check_weights.check(folder(tmp_path, **{"b.weight": torch.ones(2, dtype=dtype)}))


@pytest.mark.parametrize(("config", "reason"), [
    ({"hidden_size": 10**9}, r"hidden_size=1000000000, expected a whole number from 1 to 24"),
    ({"text_config": {"num_hidden_layers": 10**7}}, "num_hidden_layers=10000000, .* 1 to 1"),
    ({"llm": {"num_attention_heads": 0}}, "num_attention_heads=0"), ({"vocab_size": "many"}, "vocab_size='many'"),
    ({"image_size": 1.5}, "image_size=1.5"), ({"patch_size": True}, "patch_size=True"),
])
def test_sizes_that_no_tensor_has(tmp_path, config, reason):
    with pytest.raises(UserError, match=reason):
        check_weights.check(folder(tmp_path, config))


def test_sound_checkpoints_pass(tmp_path):
    for family in ("llava", "vila"):
        check_weights.check(tiny.write(family, tmp_path / family))
    for shipped in (ROOT / "benchmark" / "checkpoints").iterdir():
        check_weights.check(shipped)
