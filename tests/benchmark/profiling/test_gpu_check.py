"""The check of a GPU, rehearsed on a CPU with tiny models: every row, the file, the table, the refusals."""

from __future__ import annotations

import json

import pytest
import torch

from benchmark import cli
from benchmark.planning.estimate import GPUS
from benchmark.pocket.world.suite import Suite
from benchmark.profiling import gpu_check
from benchmark.profiling.random_model import random_model


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A few pictures of two datasets."""
    folder = tmp_path_factory.mktemp("drawn")
    names = ("coco", "gqa")
    Suite(dict.fromkeys(names, {"train": 32, "validation": 2, "test": 16})).draw(folder, names)
    return folder


@pytest.fixture
def small(monkeypatch, drawn):
    """One model, few rows."""
    monkeypatch.setattr(gpu_check, "_drawn", lambda: drawn)
    monkeypatch.setattr(gpu_check, "TINY", {"llava": gpu_check.TINY["llava"]})
    monkeypatch.setattr(gpu_check, "MICRO_BATCHES", (8,))


def rows(folder, part):
    content = json.loads((folder / "cpu-rehearsal.json").read_text())
    assert content["rehearsal"] is True and content["device"] == "cpu rehearsal"
    table = (folder / "cpu-rehearsal.md").read_text()
    assert "measures nothing" in table and f"## {part}" in table
    return content["parts"][part]


@pytest.mark.slow
def test_training_speed(small, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "_peak", lambda device: GPUS["h100"].peak * 1e12)
    assert cli.main(["gpu-check", "part=train", "device=cpu", f"out={tmp_path}"]) == 0
    found = rows(tmp_path, "train")
    assert [(row["method"], row["checkpointing"]) for row in found] == [
        ("full_ft", True), ("spider", True), ("full_ft", False), ("spider", False),
    ]
    assert all(row["samples_per_second"] > 0 and row["tokens_per_sample"] > 20 and row["mfu"] >= 0 for row in found)


@pytest.mark.slow
def test_memory(small, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)  # engine=single: no process group is left behind
    monkeypatch.setattr(gpu_check, "METHODS", ("spider",))
    monkeypatch.setattr(gpu_check, "_allocated", lambda device, peak=False: 9.0 if peak else 2.0)
    assert cli.main(["gpu-check", "part=memory", "device=cpu", f"out={tmp_path}"]) == 0
    found = rows(tmp_path, "memory")
    assert [(row["checkpointing"], row["cap_gib"]) for row in found] == [(True, None), (True, 24.0), (False, None)]
    assert all(row["fits"] and row["plan_gib"]["weights"] >= 0 and row["computed_8_ranks_gib"] > 0 for row in found)
    # What a GPU would tell: 2 GiB between steps and 9 GiB at the peak, each beside the plan's.
    assert all((row["weights_gib"], row["kept_gib"], row["step_gib"], row["peak_gib"]) == (2, 2, 7, 9) for row in found)
    for row in found:
        parts = row["plan_gib"]
        whole = row["plan_kept_gib"] + row["plan_step_gib"] + parts["CUDA, NCCL"]
        assert whole == pytest.approx(sum(parts.values()), abs=5e-3) and row["plan_weights_gib"] == parts["weights"]
    header = next(line for line in (tmp_path / "cpu-rehearsal.md").read_text().splitlines() if "computed_8" in line)
    assert all(f" {what}_gib |" in header for what in ("weights", "kept", "step", "plan_kept", "plan_step"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["random_model", "train"])
def test_a_model_that_does_not_fit_is_a_row(where, small, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_check, where, full)
    assert cli.main(["gpu-check", "part=memory", "device=cpu", f"out={tmp_path}"]) == 0
    found = rows(tmp_path, "memory")
    assert len(found) == 6 and not any(row["fits"] for row in found) and "kept_gib" not in found[0]


@pytest.mark.slow
def test_evaluation_speed_and_that_time_runs_out(small, tmp_path, monkeypatch):
    assert cli.main(["gpu-check", "part=eval", "device=cpu", f"out={tmp_path}"]) == 0
    found = rows(tmp_path, "eval")
    assert [(row["batch"], row["shared_image"]) for row in found] == [(1, False), (16, False), (64, False), (16, True)]
    assert found[0]["times_batch_1"] == 1.0 and all(row["items_per_second"] > 0 for row in found)
    assert found[-1]["items"] == 2 * gpu_check.QUESTIONS
    monkeypatch.setattr(gpu_check, "LIMIT", -1.0)
    assert cli.main(["gpu-check", "part=eval", "device=cpu", f"out={tmp_path}"]) == 0
    assert all(row["not_measured"] == "time is up" for row in rows(tmp_path, "eval"))  # in place of the old rows


@pytest.mark.parametrize(("arguments", "message"), [
    (["part=trian"], "Did you mean 'train'"), (["prt=train"], "does not read prt="),
    (["part=train", "device=tpu"], "cuda, or cpu for a rehearsal"),
])
def test_refusals(arguments, message, capsys):
    assert cli.main(["gpu-check", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert cli.main(["gpu-check", "part=train"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llava", "vila"])
def test_random_models_have_their_sizes(family):
    sizes = gpu_check.TINY[family]
    loaded = random_model(sizes, "cpu", "float32")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == sizes.total
    assert loaded.image_seq_length == sizes.image_tokens
