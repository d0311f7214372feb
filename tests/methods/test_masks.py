"""The log of the masked methods: shares of all elements, of layers, of tensors, and the flip rate."""

from __future__ import annotations

import math

import pytest
import torch

from methods.mask_log import MaskLog, sample_step
from methods.masks import shares
from methods.registry import METHODS, build
from tests.methods import parts, toy

SIZES = {
    "model.layers.3.mlp.up_proj.weight": 8,
    "model.layers.3.input_layernorm.weight": 2,
    "projector.bias": 10,
}


def test_shares_are_of_elements_and_by_layer():
    counts = {name: [size / 2, 1.0, 0.0] for name, size in SIZES.items()}
    counts["projector.bias"] = [10.0, 10.0, 4.0]
    assert shares(counts, SIZES) == {
        "mask_selected": 15 / 20, "mask_ones": 12 / 20, "mask_flips": 4 / 20,
        "selected_in/model.layers.3": 0.5, "selected_in/projector": 1.0,
        "selected/model.layers.3.mlp.up_proj.weight": 0.5, "selected/model.layers.3.input_layernorm.weight": 0.5,
        "selected/projector.bias": 1.0,
    }


def test_flips_are_counted_over_all_parts():
    tensors = {name: torch.zeros(size) for name, size in SIZES.items()}
    pieces = parts.cut(tensors, 3, lambda rank, size: size * (rank + 1) // 4)

    def work(s):
        log = MaskLog()
        assert "mask_flips" not in log.measure(s, lambda shard: torch.zeros_like(shard.weight))
        kept = MaskLog()
        kept.load_state_dict(log.state_dict(), dict.fromkeys(SIZES, torch.device("cpu")))
        first = log.measure(s, lambda shard: torch.full_like(shard.weight, 0.9))
        assert kept.measure(s, lambda shard: torch.full_like(shard.weight, 0.9)) == first
        return first, log.measure(s, lambda shard: torch.ones_like(shard.weight))

    for first, second in parts.run(pieces, SIZES, work):
        assert (first["mask_selected"], first["mask_ones"], first["mask_flips"]) == (1, 0, 1)
        assert (second["mask_selected"], second["mask_ones"], second["mask_flips"]) == (1, 1, 0)


@pytest.mark.parametrize("ends", [(1.0,), (0.37, 1.0), (0.0, 0.5, 0.5000001, 1.0)])
def test_flips_of_large_tensors_come_from_a_sample_that_no_cut_changes(ends):
    """The share is near the true one in each tensor and right whatever the parts, and little is kept for it."""
    size, random = 512 * 512, torch.Generator().manual_seed(3)
    shapes = {"large": (512, 512), "small": (700,)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    first = {name: torch.rand(n, generator=random) < 0.5 for name, n in sizes.items()}
    # Flips one in five of the large tensor's elements, whole columns of the matrix, and none of the small one's.
    second = {"small": first["small"], "large": first["large"] ^ (torch.arange(size) % 512 < 102)}

    def measured(ends):
        pieces = parts.cut(first, len(ends), lambda rank, size: int(ends[rank] * size))

        def work(s):
            log = MaskLog()
            for masks in (first, second):
                result = log.measure(
                    s, lambda shard, of=masks: of[shard.name].narrow(0, shard.offset, len(shard.weight)).float()
                )
            kept = sum(tensor.untyped_storage().nbytes() for tensor in log.state_dict().values())
            return result, kept

        return parts.run(pieces, sizes, work, shapes)

    found = measured(ends)
    assert all(result == measured((1.0,))[0][0] for result, _ in found)
    result = found[0][0]
    selected = sum(int(mask.sum()) for mask in second.values())
    assert result["mask_selected"] == selected / sum(sizes.values()), "of all elements, not of a sample"
    assert result["mask_flips"] == pytest.approx(102 / 512 * size / (size + 700), abs=0.03)
    assert sum(kept for _, kept in found) <= 1024 + 700


@pytest.mark.parametrize("shape", [
    (4096, 4096), (11008, 4096), (4096, 11008), (4096, 1024), (128, 128), (384, 128), (128, 384), (1000, 2), (5000, 1),
    (4096,), (1,), (3, 3),
])
def test_the_sample_meets_all_parts_of_a_matrix(shape):
    """Of rows and of columns, each quarter has its share."""
    size, width = math.prod(shape), shape[-1]
    places = torch.arange(0, size, sample_step(shape))
    assert min(size, 300) <= len(places) <= 1024
    for index, length in ((places % width, width), (places // width, size // width)):
        if length >= 64:
            quarters = torch.histc(index.double() / length, bins=4, min=0, max=1) / len(places)
            assert (quarters - 0.25).abs().max() < 0.06, quarters


MASKED = [
    name for name, item in METHODS.items() if item.kind == "training" and "spider" in name or "half" in name
]


@pytest.mark.parametrize("method", MASKED)
def test_every_masked_method_logs_its_selection(method):
    run = toy.train(build(method, {}, seed=0), steps=2, dtype=torch.float32)
    first = run.attachment.diagnostics()
    toy.step(run.model, run.optimizer, 2)
    second = run.attachment.diagnostics()
    assert "mask_flips" not in first and 0 <= second["mask_flips"] <= 1
    for row in (first, second):
        assert 0.3 < row["mask_selected"] < 0.7 and 0 < row["mask_ones"] <= row["mask_selected"]
        assert {name for name in row if name.startswith("selected/")} == {
            f"selected/{n}" for n in run.weights
        }
        layers = [row[f"selected_in/{part}"] for part in ("layers.0", "layers.1", "projector")]
        assert all(0 <= share <= 1 for share in layers)
    redrawn = method not in ("half_ft", "half_ft_elements", "spider_magnitude")
    assert (second["mask_flips"] > 0) == redrawn, "a static mask does not flip, the others do"
