"""A small world on disk, and cells of it that two processes work on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml
from PIL import Image

from benchmark.spec import CellSpec, DatasetSpec, plain
from tests.benchmark.cells import cell_of_tiny
from tests.benchmark.models import tiny

ICONQA = DatasetSpec(
    id="iconqa", name="IconQA", role="target", metric="exact_lower", prompt="{question} {options}", max_new_tokens=4,
    splits={"train": "train", "test": "test"}, counts={"train": None, "test": None}, options={},
)


def write_world(root: Path) -> Path:
    """Write a small model and an IconQA of 12 training and 7 test questions, in its official files."""
    tiny.write("llava", root / "model")
    folder = root / "data" / "iconqa" / "iconqa_data"
    problems, splits = {}, {"choose_txt_train": [], "choose_txt_test": []}
    for number in range(19):
        split = "train" if number < 12 else "test"
        image = folder / "iconqa" / split / "choose_txt" / str(number) / "image.png"
        image.parent.mkdir(parents=True)
        Image.effect_noise((20 + number, 24), 80).convert("RGB").save(image)
        question = "what colour is this animal ?" if number % 2 else "what ?"
        problems[str(number)] = {"question": question, "choices": ["red", "a blue dog"], "answer": number % 2}
        splits[f"choose_txt_{split}"].append(str(number))
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return root


def cell(world: Path, **changes) -> CellSpec:
    """Return a cell of two processes."""
    base = cell_of_tiny(checkpoint=str(world / "model"), train={"gradient_checkpointing": True, "batch_size": 4})
    return replace(
        base, target="iconqa", datasets=(ICONQA,), data_root=str(world / "data"), engine="zero2", processes=2,
        zero_optimization={"stage": 2, "reduce_bucket_size": 500000}, **changes,
    )


def folder_of(path: Path, spec: CellSpec) -> Path:
    path.mkdir()
    (path / "cell.yaml").write_text(yaml.safe_dump(plain(spec)))
    return path
