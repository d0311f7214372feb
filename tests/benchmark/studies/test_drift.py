"""The drift of a cell: measured once, again when its weights change, from the base that is loaded."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.spec import DatasetSpec, cell_id, plain
from benchmark.store.cells import Store
from benchmark.studies import drift
from benchmark.training.checkpoint import apply_delta, save_delta, snapshot
from tests.benchmark.training.conftest import loaded, models, records  # noqa: F401  # the fixtures
from tests.benchmark.training.toy_cell import cell

SETS = tuple(DatasetSpec(name, name, role, "gqa", "{question}", 8, {}, {}, {}) for name, role in (
    ("toy", "target"), ("one", "upstream"), ("two", "upstream")))


def test_the_distance_is_over_what_changed():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(3)}
    delta = {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([4.0, 0.0, 0.0])}
    assert drift.distance(delta, base, 10) == {"distance": 5.0, "changed": 0.2}
    assert drift.distance({}, base, 10) == {"distance": 0.0, "changed": 0.0}
    # A change that the dtype of the answers does not see is none.
    small = drift.distance({"a": torch.tensor([1.0, 2.0001])}, {"a": base["a"].bfloat16()}, 2)
    assert small == {"distance": 0.0, "changed": 0.0}


@pytest.fixture
def stage(loaded, records, tmp_path):  # noqa: F811
    """Return (stage, folder of a cell, function that writes its delta, the reads of the worker)."""
    names = [name for name, _ in loaded.model.named_parameters()]
    base, reads = snapshot(loaded.model, names), []

    @contextlib.contextmanager
    def weights(*_, **__):
        try:
            yield base
        finally:
            apply_delta(loaded.model, base)

    def read(one, dataset, split, limit):
        reads.append((dataset, split, limit))
        return records[:limit]

    spec = replace(cell(), datasets=SETS)
    store = Store(tmp_path)
    folder = store.folder(spec)
    write_atomic(folder / "cell.yaml", yaml.safe_dump(plain(spec), sort_keys=False))
    made = drift.Stage(store, drift.Amount(4, 3), SimpleNamespace(
        base=weights, _load=lambda *_, **__: loaded, records=read,
    ))
    made._digests = SimpleNamespace(model=lambda *_: "base", records=lambda one, *rest: f"{one.id} {rest}")

    def tune(amount):
        name = next(name for name in names if name.startswith(loaded.block_prefixes[-1]) and base[name].dim() == 2)
        save_delta(folder / "delta.safetensors", {**base, name: base[name] + amount}, base, names, loaded.digest)

    assert cell_id(spec) == folder.name
    return made, folder, tune, reads


def test_a_cell_is_measured_once_and_again_when_its_weights_change(stage):
    made, folder, tune, reads = stage
    assert made.missing([folder]) == []  # no weights, nothing to measure
    tune(0.05)
    assert made.missing([folder]) == [folder]
    made.run(folder, lambda *_: None)
    first = drift.recorded(folder)
    assert made.missing([folder]) == [] and not (folder / "lock").exists()
    assert sorted(reads) == [("one", "validation", 3), ("toy", "validation", 4), ("two", "validation", 3)]
    assert first["kl"] > 0 and first["inputs"] == 6 and len(first["cka"]) > 1 and first["cka"][0] == pytest.approx(1)
    tune(0.2)
    assert made.missing([folder]) == [folder]
    made.run(folder, lambda *_: None)
    second = drift.recorded(folder)
    assert second["kl"] > first["kl"] and second["distance"] == pytest.approx(4 * first["distance"], rel=1e-4)
    assert len(reads) == 3  # the base's outputs serve both
    tune(0.05)
    made.run(folder, lambda *_: None)
    assert drift.recorded(folder) == first


def test_it_is_measured_again_for_other_data_or_another_amount(stage):
    made, folder, tune, _ = stage
    tune(0.05)
    made.run(folder, lambda *_: None)
    made._amount = drift.Amount(4, 2)
    assert made.missing([folder]) == [folder]
    made._amount = drift.Amount(4, 3)
    made._digests.model = lambda *_: "another base"
    assert made.missing([folder]) == [folder]


def test_a_damaged_file_is_measured_again_and_a_damaged_delta_is_named(stage):
    made, folder, tune, _ = stage
    tune(0.05)
    made.run(folder, lambda *_: None)
    (folder / drift.FILE).write_text("{")
    assert drift.recorded(folder) == {} and made.missing([folder]) == [folder]
    blob = bytearray((folder / "delta.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "delta.safetensors").write_bytes(blob)
    with pytest.raises(UserError, match="is damaged"):
        made.run(folder, lambda *_: None)
