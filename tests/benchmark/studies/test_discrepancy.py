"""PID: the formula, and shards with exactly as many supervised tokens for every set."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import benchmark.models
from benchmark.config.request import request
from benchmark.models.batch import Item
from benchmark.models.prompt import IGNORE
from benchmark.spec import at_root
from benchmark.studies import discrepancy
from tests.benchmark.cells import cell_of_tiny


def test_the_formula():
    weight = torch.tensor([3.0, -4.0, 0.0])
    assert discrepancy.discrepancy(weight, 2 * weight) == pytest.approx(1.0)
    assert discrepancy.discrepancy(weight, -weight.abs()) == pytest.approx(1.0)  # signs do not count
    half = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    assert discrepancy.discrepancy(*half) == pytest.approx(2.0)  # cos(45 degrees)^-2
    assert discrepancy.discrepancy(weight, torch.tensor([0.0, 0.0, 1.0])) == math.inf
    assert math.isnan(discrepancy.discrepancy(weight, torch.zeros(3)))


@pytest.mark.parametrize("lengths", [[1] * 100, [3, 1, 4, 1, 5] * 40, [9] * 30])
def test_shards_are_disjoint_and_have_equal_numbers_of_supervised_tokens(lengths):
    items = [Item(str(k), [0] * (n + 2), [IGNORE, IGNORE, *range(n)], None) for k, n in enumerate(lengths)]
    shards = list(discrepancy._shards(items, 5))
    assert len(shards) == discrepancy.SHARDS
    for shard in shards:
        assert sum(label != IGNORE for item in shard for label in item.labels) == 5
    names = [item.item_id for shard in shards for item in shard]
    assert len(set(names)) == len(names)
    # What is cut is the end of a shard's last item.
    cut = next((item for shard in shards for item in shard[-1:]), None)
    kept = [label for label in cut.labels if label != IGNORE]
    assert kept == list(range(len(kept)))


@pytest.mark.parametrize("lengths", [[1] * 100, [37] * 27, [40] * 60, [3, 1, 4, 1, 5] * 40, [2] * 512, [9, 400] * 50])
def test_shards_never_run_out_of_items(lengths):
    tokens = discrepancy.shard_tokens(lengths)
    items = [Item(str(k), [0] * (n + 2), [IGNORE, IGNORE, *range(n)], None) for k, n in enumerate(lengths)]
    if tokens >= 1:
        assert len(list(discrepancy._shards(items, tokens))) == discrepancy.SHARDS
    assert (tokens < 1) == (sum(lengths) // discrepancy.SHARDS < max(lengths))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "vila"])
def test_the_parts_of_a_real_model_are_what_is_tuned_the_projector_and_every_block(family):
    (spec,) = request(["profile=pocket", "table=table5", f"models={family}_pocket"], grid=False).models
    loaded = benchmark.models.load(replace(spec, checkpoint=str(at_root(spec.checkpoint))), torch.float32)
    parts = discrepancy._parts(loaded, cell_of_tiny(family))
    assert list(parts) == ["tuned", "projector", *map(str, range(8))]
    assert sorted(parts["tuned"]) == sorted(parts["projector"] + parts["6"] + parts["7"])
    blocks = [name for part in map(str, range(8)) for name in parts[part]]
    assert len(blocks) == len(set(blocks)) == 8 * len(parts["0"]) > 8
