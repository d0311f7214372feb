"""The largest elements of every row are exactly as many as asked for, and the same ones for any cut."""

from __future__ import annotations

import pytest
import torch

from benchmark.core.errors import UserError
from methods.registry import build
from methods.row_threshold import largest_per_row
from tests.methods import parts, toy

SHAPES = {"wide": (3, 7), "tall": (11, 2), "column": (5, 1), "cube": (2, 3, 4)}


def matrices() -> dict[str, torch.Tensor]:
    """Values with ties inside every row, zeros and both signs."""
    source = torch.Generator().manual_seed(2)
    return {name: torch.randint(-2, 3, shape, generator=source).float() for name, shape in SHAPES.items()}


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("ends", [(99,), (9, 99), (0, 4, 5, 99), (3, 3, 99), (1, 2, 3, 4, 5, 6, 99)])
def test_rows_equal_sorting_however_the_matrices_are_cut(count, ends):
    tensors = matrices()
    flat = {name: tensor.flatten() for name, tensor in tensors.items()}
    sizes = {name: tensor.numel() for name, tensor in flat.items()}

    def work(shards):
        return largest_per_row(shards, lambda shard: shard.weight, count)

    found = parts.run(parts.cut(flat, len(ends), lambda rank, size: ends[rank]), sizes, work, SHAPES)
    for name, tensor in tensors.items():
        rows = tensor.flatten(1)
        order = rows.abs().sort(dim=1, descending=True, stable=True).indices[:, :count]
        expected = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)
        assert torch.equal(torch.cat([part[name] for part in found]), expected.flatten()), name


@pytest.mark.parametrize("method", ["gps", "spu", "largest_weights"])
def test_masks_of_three_processes_are_those_of_one(method):
    """In three processes, which share rows, and one of which holds nothing."""
    shapes = {"model.layers.0.mlp.up_proj.weight": (5, 8), "projector.weight": (3, 3), "projector.bias": (4,)}
    source = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=source).flatten() for name, shape in shapes.items()}
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}

    def work(shards):
        built = build(method, {}, seed=0)
        built.shards = shards
        built.start(shards)
        built.before_step(shards)
        built.after_step(shards)
        return {shard.name: built.mask(shard) for shard in shards}

    whole = parts.run(parts.cut(tensors, 1, lambda rank, size: size), sizes, work, shapes)[0]
    pieces = parts.run(parts.cut(tensors, 3, lambda rank, size: (0, 13)[rank]), sizes, work, shapes)
    for name in sizes:
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole[name]), name
    assert 0 < sum(int(mask.sum()) for mask in whole.values()) < sum(sizes.values())


def test_gps_trains_one_input_of_each_neuron():
    method = build("gps", {}, 0)
    run = toy.train(method, steps=2)
    for shard in run.attachment.shards:
        trained = method.mask(shard).view(shard.shape)
        if len(shard.shape) == 2:
            assert (trained.sum(1) == 1).all(), shard.name
        else:
            assert trained.all() if shard.name.endswith(".bias") else not trained.any(), shard.name


def test_a_scope_without_first_matrices_is_refused():
    run = toy.train(build("full_ft", {}, 0), steps=1)
    attention = run.attachment.shards.where(lambda shard: "self_attn" in shard.name)
    with pytest.raises(UserError, match="spu trains the first matrices .* Choose a train.scope"):
        build("spu", {}, 0).start(attention)
