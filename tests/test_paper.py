"""The whole paper scale without its data: real configuration, small files in the official layouts, tiny checkpoints.

Only sizes differ: item counts, one epoch, answer lengths (a random model never stops) and the checkpoints, which are
random models in the public layouts of LLaVA-1.5 and VILA1.5; a process trains alone (engine=single). Every command
runs in a process of its own whose root is a folder of the test, forked from one that has imported the libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from benchmark.spec import ROOT
from tests import real_layouts
from tests.benchmark.models import tiny
from tests.forked import Program

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
CODE = ("benchmark", "eval", "methods", "examples")
METHODS = "zero_shot,full_ft,dare,spider"
UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")
TARGETS = ("flickr30k", "coco", "iconqa", "scienceqa")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder that holds the repository's code and conf, tiny checkpoints and the user's files."""
    root = tmp_path_factory.mktemp("paper")
    shutil.copytree(ROOT / "conf", root / "conf")
    for path in (root / "conf" / "model").glob("*15_*.yaml"):
        model = yaml.safe_load(path.read_text())
        sized = {"architecture", "vocab_size"}  # the public sizes, which tiny checkpoints are refused for
        path.write_text(yaml.safe_dump({key: value for key, value in model.items() if key not in sized}))
    for name in CODE:
        (root / name).symlink_to(ROOT / name)
    (root / "results").mkdir()
    (root / "results" / "published").symlink_to(ROOT / "results" / "published")
    with pytest.MonkeyPatch.context() as patch:
        real_layouts.draw_official(root / "downloads", patch)
    tiny.write("llava", root / "checkpoints" / "llava-1.5-7b-hf")
    tiny.write("vila", root / "checkpoints" / "VILA1.5-3b")
    return root


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command line with the folder as the repository."""
    program = Program(command, place, arguments, folder=place)
    out, errors = program.communicate()
    return subprocess.CompletedProcess(arguments, program.wait(), out, errors)


def command(place: Path, arguments: Sequence[str]) -> int:
    """Do in a forked process what a new interpreter does in the folder; only its libraries are there already."""
    os.chdir(place)
    for name in [name for name in sys.modules if name.partition(".")[0] in CODE]:
        del sys.modules[name]
    sys.path.insert(0, ".")
    import benchmark.spec

    assert Path(benchmark.spec.__file__).absolute().is_relative_to(place)
    benchmark.spec.ROOT = benchmark.spec.WORK = Path.cwd()
    benchmark.spec.CONF = Path.cwd() / "conf"
    from benchmark.cli import main

    return main(list(arguments))


def settings() -> list[str]:
    """Return what makes the paper's profile small and lets it run without a GPU."""
    short = [f"dataset.{name}.max_new_tokens=3" for name in (*UPSTREAM, "textvqa_no_ocr", *TARGETS)]
    return [*real_layouts.overrides(), *short, "device=cpu", "engine=single", "threads=1", "train.epochs=1",
            "model.max_length=480"]


def test_prepare_gate_and_both_tables(place):
    own = [f"--from={name}=downloads/{name}" for name in (*UPSTREAM, *TARGETS)]
    done = run(place, "data", "prepare", *real_layouts.overrides(), "--no-hub", *own)
    assert done.returncode == 0, done.stderr
    assert "scienceqa: licence CC BY-NC-SA 4.0" in done.stdout

    # Random weights do not score as in the paper: the gate stops the table before anything is trained.
    given = ["run", "table=table5", *settings(), f"methods={METHODS}"]
    done = run(place, *given)
    assert done.returncode == 2 and "the zero-shot gate is shut" in done.stderr and "58.25" in done.stderr, done.stdout
    assert "likely cause" in done.stderr and "GATE=warn" in done.stderr
    cells = place / "results" / "runs" / "paper" / "cells"
    assert sorted(path.name.split("-")[0] for path in cells.iterdir() if path.is_dir()) == ["llava15_7b", "vila15_3b"]

    for table, targets, blocks in (("table5", TARGETS[:2], 4), ("table6", TARGETS[2:], 2)):
        done = run(place, *[item.replace("table5", table) for item in given], "gate=warn")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "Going on, since gate=warn" in done.stdout and "Zero-shot" in done.stdout and "SPIDER" in done.stdout
        text = next((place / "results" / "runs" / "paper" / "tables").glob(f"{table}*.md")).read_text()
        assert text.count("\n### ") == blocks and all(name in text for name in ("A^T", "DARE", "Full FT", "SPIDER"))
        assert all(target.split("3")[0] in text.lower() for target in targets)

    one = next(cells.glob("vila15_3b-scienceqa-spider-*"))
    kept = json.loads((one / "provenance.json").read_text())["items"]
    assert set(kept) == {*UPSTREAM, "scienceqa"} and kept["scienceqa"]["test"]["n"] == 12
    assert len(kept["scienceqa"]["train"]["ids"]) == 64 and kept["scienceqa"]["train"]["n"] == real_layouts.SAMPLE
    known = json.loads((place / "data" / "paper" / "ids.json").read_text())
    assert kept["okvqa"]["test"]["ids"] in {entry["ids"] for name, entry in known.items() if name.startswith("okvqa")}


def test_audit_protocol_renders_a_sample_of_each_dataset(place):
    own = [f"--from={name}=downloads/{name}" for name in (*UPSTREAM, *TARGETS)]
    assert run(place, "data", "prepare", *real_layouts.overrides(), "--no-hub", *own).returncode == 0
    done = run(place, "audit", "protocol", *real_layouts.overrides(), "models=llava15_7b")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "Green: the tokens that the loss sees. Tokens of LLaVA-1.5-7B." in out
    assert out.count("evaluation prompt, item ") == 8 and out.count("training sample, item ") == 4
    assert "protocol letter: options as lines" in out
    assert "others: protocol.iconqa=answer_letter|letter_instruction" in out
    assert "tokens supervised" in out and "Reference OCR token:" in out
