"""The trainer on family auto under ZeRO-2, and ZeRO-3 for two types: the same deltas as on one process."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from benchmark.data.record import Record
from benchmark.training.checkpoint import load_delta
from benchmark.training.train import train
from methods.registry import build
from tests.benchmark.models import auto_tiny, tiny
from tests.benchmark.training.auto_cells import cell
from tests.multiprocess.launch import launch
from tests.multiprocess.training import ZERO

ANSWERS = ["red", "a blue dog", "A", "green cat"]
ZERO3 = ("gemma3", "qwen3_vl")
SIZES = [(64, 48), None, (30, 90), None]  # the second process gets a micro-batch without images


def run(folder: Path, kinds: list[str], engine: str) -> list[str]:
    """Train a cell of each type in this process's group; return the types that were trained."""
    done = []
    for kind in kinds:
        loaded = auto_tiny.load(kind, folder / kind)
        records = [
            Record(
                f"item{n}", "toy", "train", folder / f"{n}.png" if SIZES[n] else None, f"what {n}?", ANSWERS[n], (),
                None, str(n), {},
            )
            for n in range(len(SIZES))
        ]
        one = cell(loaded, "spider", engine, ZERO.get(engine))
        out = folder / f"{kind}-{engine}"
        out.mkdir(exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            train(one, loaded, records, build("spider", {}, 0), out)
        done.append(kind)
    return done


@pytest.mark.multiprocess
def test_every_type_gets_the_weights_of_one_process(tmp_path):
    from benchmark.core.errors import UserError

    kinds = []
    for kind in auto_tiny.TYPES:
        auto_tiny.write(kind, tmp_path / kind)
        with contextlib.suppress(UserError):  # a type whose processor needs a package that is not here
            auto_tiny.load(kind, tmp_path / kind)
            kinds.append(kind)
    assert len(kinds) >= 11
    for number, size in enumerate(SIZES):
        if size:
            tiny.picture(*size, seed=number).save(tmp_path / f"{number}.png")
    assert launch(run, 1, tmp_path, kinds, "single") == [kinds]
    assert launch(run, 2, tmp_path, kinds, "zero2") == [kinds, kinds]
    for kind in ZERO3:  # one process group each: DeepSpeed cuts up every model that is loaded after a ZeRO-3 training
        assert launch(run, 2, tmp_path, [kind], "zero3") == [[kind], [kind]]
    for kind in kinds:
        loaded = auto_tiny.load(kind, tmp_path / kind)
        base = {name: parameter.detach() for name, parameter in loaded.model.named_parameters()}
        one, *others = (
            load_delta(tmp_path / f"{kind}-{engine}" / "delta.safetensors", loaded.digest)
            for engine in ("single", "zero2", *(["zero3"] if kind in ZERO3 else []))
        )
        for other in others:
            assert one.keys() == other.keys(), kind
            moved = sum(float((one[name] - base[name]).norm() ** 2) for name in one) ** 0.5
            apart = sum(float((one[name] - other[name]).norm() ** 2) for name in one) ** 0.5
            assert apart < 1e-3 * moved, (kind, apart, moved)
