"""The example of a method in a package of its own: installed, it is listed, attached and planned like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark.spec import ROOT
from tests.examples import loop

pytestmark = pytest.mark.slow
PROGRAM = """
import sys, torch
from spiderbench import attach, list_methods
from examples.own_trainer import make_model
from tests.examples.test_own_trainer import data
assert list_methods()["soft_spider"].name == "SPIDER, soft"
for floor in (0.0, 0.5, 1.0):
    model, (images, labels) = make_model(), data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)
    attach("soft_spider", optimizer, model, floor=floor)
    for batch, label in zip(images, labels):
        torch.nn.functional.cross_entropy(model(batch), label).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save({name: p.detach() for name, p in model.named_parameters()}, f"{sys.argv[1]}/{floor}.pt")
"""
COMMANDS = """
import json, sys
from benchmark.cli import main
for number, words in enumerate(json.loads(sys.argv[1])):
    print(end="\\0" * bool(number), flush=True)
    assert main(words) == 0, words
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return a folder with the installed package; building leaves files, so a copy is built."""
    root = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "examples" / "soft_spider", root / "source", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(root / "site"), str(root / "source")],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    return root / "site"


def run(installed: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), str(installed)])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=installed.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_spider_gives_the_weights_of_the_reference(installed):
    from examples.own_trainer import make_model
    from tests.examples.test_own_trainer import data

    run(installed, "-c", PROGRAM, str(installed.parent))
    soft = {floor: torch.load(installed.parent / f"{floor}.pt") for floor in (0.0, 0.5, 1.0)}
    images, labels = data()
    expected = loop.spider(
        make_model(), zip(images.double(), labels, strict=True),
        lambda net, batch: torch.nn.functional.cross_entropy(net(batch[0]), batch[1]), rates=lambda step: 1e-3,
        decay=0.01,
    )
    base = loop.weights_of(make_model())
    loop.agrees(soft[0.0], expected, base)
    stayed = {floor: sum((w[name] == base[name]).sum().item() for name in base) for floor, w in soft.items()}
    assert stayed[0.0] > 1000 > 10 > stayed[0.5] >= stayed[1.0]


def test_the_command_line_knows_it(installed, tmp_path):
    plan = ["plan", "table=smoke", "models=llava_pocket", "methods=full_ft,soft_spider", "method.floor=0.2"]
    said = run(installed, "-c", COMMANDS, json.dumps([["list"], [*plan, f"results={tmp_path}"], ["completion"]]))
    listed, planned, completion = said.split("\0")
    assert "soft_spider" in listed and "soft_spider" in completion
    assert "soft_spider.SoftSpider-floor0.2" in planned and "2 cells" in planned


def test_the_library_lists_it(installed):
    program = "import json, spiderbench; print(json.dumps([*spiderbench.list_methods()][-1]))"
    assert json.loads(run(installed, "-c", program)) == "soft_spider"
