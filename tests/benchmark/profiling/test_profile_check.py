"""doctor profile=...: checkpoints of every layout, what is missing, and what to do about it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.profiling import profile_check
from benchmark.profiling.profile_check import check
from tests.benchmark.models import tiny
from tests.benchmark.models.test_layouts import CLIP, write_clip, write_original


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    loaded = tiny.load("llava", tiny.write("llava", root / "hf"))
    write_clip(root / CLIP, loaded)
    write_original(root / "original", loaded)
    tiny.write("vila", root / "vila")
    return root


def findings(model, checkpoint, *more):
    words = [f"model={model}", f"model.checkpoint={checkpoint}", "method=zero_shot", "data_root=/nowhere", *more]
    return check(request(words, grid=False), 0)


@pytest.mark.parametrize(("model", "folder", "layout"), [
    ("llava_pocket", "hf", "llava-hf layout"), ("llava_pocket", "original", "LLaVA's own layout"),
    ("vila_pocket", "vila", "VILA folders"),
])
def test_layouts_are_recognised(places, model, folder, layout):
    facts, faults = findings(model, places / folder)
    assert any(f"{model}: {layout} in {places / folder}" in fact for fact in facts) and not faults


def test_what_is_missing_is_named_with_its_remedy(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    code = cli.main(["doctor", "profile=paper", "gpus=8", "data_root=/nowhere"])
    out = capsys.readouterr().out
    assert code == 2 and "Something is missing." in out
    assert "fetch llava-hf/llava-1.5-7b-hf into the hub cache, or set model.checkpoint=" in out
    assert "MISSING   coco: no /nowhere/coco yet, docs/data.md says where it comes from" in out
    missing = [line for line in out.splitlines() if line.startswith("MISSING")]
    assert not [line for line in missing if re.match(r"MISSING   \w+( \d)? {2,}", line)]  # no second label
    assert "install a CUDA build of torch" in out or "torch sees no CUDA device" in out or "gpu 0 " in out


def test_too_little_memory_or_disk_says_what_would_do(monkeypatch):
    asked = request(["profile=paper", "data_root=/nowhere"], grid=False)
    monkeypatch.setattr(profile_check, "available_gb", lambda: 64.0)
    ((good, text),) = profile_check._memory(asked, 8)
    assert not good and text == (
        "113 GB of host memory while 8 process(es) load the weights, 64 GB here: use fewer GPUs per machine, or end "
        "programs"
    )
    ((good, text),) = profile_check._memory(asked, 4)
    assert good and text.startswith("loading   57 GB of host memory")
    monkeypatch.setattr(profile_check.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 9e9))
    ((good, text),) = profile_check._disk(asked)
    assert not good and "9 GB free, a training takes 13 GB: free some, or set results=" in text
    assert not text.startswith("results  ")


def test_wrong_checkpoints(places, tmp_path):
    assert "is not a VILA folder" in findings("vila_pocket", places / "hf")[1][0]
    assert "is neither llava-hf's layout nor LLaVA's own" in findings("llava_pocket", places / "vila")[1][0]
    (tmp_path / "config.json").write_text('{"model_type": "llava", "text_config": {}}')
    assert "has no weights" in findings("llava_pocket", tmp_path)[1][0]
    whole = (places / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    assert "model.safetensors is truncated or corrupt" in findings("llava_pocket", tmp_path)[1][0]
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert not findings("llava_pocket", tmp_path)[1]
    assert "holds 0.0 GB of weights, LLaVA-1.5-7B has 14.1 GB" in findings("llava15_7b", tmp_path)[1][0]
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not findings("llava_pocket", tmp_path)[1]  # left over from an earlier save
    (tmp_path / "model.safetensors").unlink()
    assert "lacks model-00001-of-00002.safetensors" in findings("llava_pocket", tmp_path)[1][0]
