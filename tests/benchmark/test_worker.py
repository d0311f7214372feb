"""What a worker refuses before it starts a stage."""

from __future__ import annotations

from benchmark import worker
from benchmark.compose import request
from benchmark.errors import UserError
from benchmark.keys import Keys
from benchmark.store import Store


def test_a_missing_java_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    """CIDEr needs it; without the check the cell trains and answers first."""
    def none():
        raise UserError("No Java found")

    began = []
    monkeypatch.setattr(worker, "find_java", none)
    monkeypatch.setattr(worker.Worker, "_load", lambda self, cell: began.append("load"))
    monkeypatch.setattr(worker.Worker, "stage", lambda self, stage, *rest: began.append(stage))
    cell = request(["method=full_ft", "model=llava_pocket", "dataset=coco"]).cells[0]
    names = [dataset.id for dataset in cell.datasets]
    keys = Keys("t", dict.fromkeys(names, "g"), dict.fromkeys(names, "s"), "y")
    store = Store(tmp_path)
    store.check_writable()
    result = worker.Worker(store).run(cell, keys, None, lambda *event: None)
    assert isinstance(result, worker.Failure) and result.user and result.message == "No Java found" and not began
