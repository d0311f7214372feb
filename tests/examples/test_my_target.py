"""The example of an own target: thirty lines, found by its module's name, checked, planned and read like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import examples
from benchmark.compose import request
from benchmark.data import check_images, load
from benchmark.errors import UserError
from benchmark.keys import Digests
from benchmark.spec import cell_id

ROOT = Path(examples.__file__).resolve().parent.parent
NAME = "examples.my_target"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a data root with three training and two test lines, one of them without an image."""
    place = tmp_path / "my_target"
    place.mkdir()
    Image.new("RGB", (8, 8), "red").save(place / "red.png")
    rows = {
        "train": [{"image": "red.png", "prompt": f"What colour, {n}?", "answers": ["red"]} for n in range(3)],
        "test": [
            {"image": "red.png", "prompt": "What colour?", "answers": ["red", "dark red"]},
            {"image": None, "prompt": "Two and two?", "answers": ["4"]},
        ],
    }
    for split, lines in rows.items():
        (place / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_it_has_thirty_lines():
    assert len((ROOT / "examples" / "my_target.py").read_text().splitlines()) <= 30


def test_it_is_read_like_any_other(folder):
    asked = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"])
    spec = asked.cells[0].dataset("my_target")
    assert (spec.role, spec.options, asked.cells[0].target) == ("target", {"reader": NAME}, "my_target")
    first, second = load(spec, folder, "test")
    assert first.prompt == "What colour?\nAnswer the question using a single word or phrase."
    assert first.references == ("red", "dark red") and first.target == "red" and second.image is None
    assert check_images([first, second]) == 1 and len(load(spec, folder, "train", limit=2)) == 2
    digests = Digests(folder / "digests.json")
    before = digests.records(spec, str(folder), "test", None)
    (folder / "my_target" / "test.jsonl").write_text('{"image": null, "prompt": "x", "answers": ["y"]}\n')
    assert Digests(folder / "other.json").records(spec, str(folder), "test", None) != before


def test_it_does_not_stay_for_the_next_request(folder):
    request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"])
    assert "my_target" not in request([], grid=False).datasets
    given = ["method=full_ft", "model=llava_pocket"]
    assert len({cell_id(request([*given, f"targets={name}"]).cells[0]) for name in (NAME, "coco")}) == 2


def test_missing_and_wrong_things(folder, tmp_path):
    spec = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"]).cells[0].dataset("my_target")
    with pytest.raises(UserError, match=r"validation\.jsonl does not exist"):
        load(spec, folder, "validation")
    (folder / "my_target" / "test.jsonl").write_text('{"image": null, "answers": ["y"]}\n')
    with pytest.raises(UserError, match="not in the official layout of examples.my_target .KeyError: 'prompt'"):
        load(spec, folder, "test")
    wrong = {"examples.nothing": "Cannot import 'examples.nothing'", "benchmark.spec": "needs DATASET"}
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            request(["method=full_ft", "model=llava_pocket", f"targets={name}"])


@pytest.mark.slow
def test_a_cell_runs_from_training_to_its_score(folder, tmp_path):
    """TARGETS=examples.my_target trains, answers and scores; the upstream sets are cut to a few items."""
    from tests.benchmark.models import tiny

    tiny.write("llava", tmp_path / "checkpoint")
    from tests import real_layouts

    with pytest.MonkeyPatch.context() as patch:
        real_layouts.draw_official(folder, patch)
    counts = [f"dataset.{n}.counts.test={real_layouts.COUNTS['test']}" for n in ("okvqa", "textvqa", "gqa", "ocrvqa")]
    short = [f"dataset.{n}.max_new_tokens=2" for n in ("okvqa", "textvqa", "gqa", "ocrvqa")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "run", "method=full_ft", "model=llava_pocket", f"targets={NAME}",
         f"data_root={folder}", f"model.checkpoint={tmp_path / 'checkpoint'}", f"results={tmp_path / 'results'}",
         "model.max_length=480", "train.epochs=1", "jobs=1", *counts, *short],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (scores,) = (tmp_path / "results").rglob("scores.json")
    assert json.loads(scores.read_text())["datasets"]["my_target"]["n"] == 2
