"""The parity matrix as a document: .venv/bin/python -m tests.multiprocess.matrix"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path

import deepspeed
import torch

from benchmark.core.files import write_atomic
from tests.multiprocess.launch import launch
from tests.multiprocess.parity import (
    BF16_PLACES,
    FLIPPED,
    MARGIN,
    PLACES,
    TOLERANCE,
    by_hand,
    compare,
    methods_at,
    results,
    table,
)
from tests.multiprocess.training import ACCUMULATION, BATCH, EPS, STEPS, write

DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"
TEXT = """# The same weights on every engine

Every method that trains was trained for {steps} optimizer steps on a small real LLaVA (two decoder layers and the
projector, in two parameter groups; tensor sizes that no number of processes divides; answers of unequal length, a third
of the items without an image), {batch} samples per step, {accumulation} micro-batches per process, gradients clipped,
AdamW with eps = {eps:g} (with 1e-8, Adam's usual, rounding of gradients that are nearly 0 is seen, which the tests
allow to be 1e-5, 1 % of the rate; with 1e-6, up to 1.2e-6 on some processors). A cell is the largest difference of any
weight from one plain torch process; `+n` says that n elements came out on the other side of their mask's threshold.
Allowed are {tolerance:g}, and of elements at a threshold 1 in {flipped:.0f}, each
nearer than |G - I| = {margin:g} to it.
"refused": the method says why and trains on another engine. An empty cell was not run: with three processes, and with
FSDP2, one variant of each class is.

Made by `.venv/bin/python -m tests.multiprocess.matrix` with torch {torch}, DeepSpeed {deepspeed}, gloo, on CPU
processes; `tests/multiprocess/test_parity.py` asserts it in the normal test run, together with the log's numbers, the
hook calls, and that all processes end with the same weights bit for bit. The launches of this document took
{seconds:.0f} seconds on two CPU cores. NCCL and GPUs have not been run.

## float32

{float32}

## bfloat16 weights, float32 masters

The first column of a place is the difference of the masters from those of one plain process that keeps them by hand
(as FSDP2 does, its one runs the tokens that all items begin with once per item: in bfloat16 this rounds differently).
The second answers two questions for every step and process. Do the weights of the next forward pass equal the masters
in bfloat16, bit for bit? Where M = 0, do they equal the base checkpoint? Only spider_lag fails the second, by design:
as in the released code, its forward passes see weights that no mask has touched.

{bfloat16}
"""


def main() -> int:
    """Run every launch and write the document."""
    began = time.monotonic()
    columns: dict[str, dict[str, str]] = {}
    bfloat16: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name))
        expected = launch(results, 1, folder, "plain")[0]
        for engine, processes in PLACES:
            methods = methods_at(engine, processes)
            found = launch(results, processes, folder, engine, "float32", 1, methods)[0]
            columns[f"{engine} x{processes}"] = {
                method: str(compare(expected[method], found[method])) for method in methods
            }
            print(f"{engine} x{processes}", columns[f"{engine} x{processes}"], file=sys.stderr, flush=True)
        expected_bf16 = functools.cache(lambda processes, fsdp2: by_hand(folder, processes, fsdp2))
        for engine, processes in BF16_PLACES:
            methods, expected = methods_at(engine, processes), expected_bf16(processes, engine == "fsdp2")
            ranks = launch(results, processes, folder, engine, "bfloat16", 1, methods)
            place, bitwise = f"{engine} x{processes}", f"{engine} x{processes}: bitwise"
            bfloat16[place], bfloat16[bitwise] = {}, {}
            for method in methods:
                bfloat16[place][method] = str(compare(expected[method], ranks[0][method]))
                refused = isinstance(ranks[0][method], str)
                right = not refused and not any(rank[method].faults for rank in ranks)
                bfloat16[bitwise][method] = "refused" if refused else "yes" if right else "no"
            print(place, bfloat16[place], bfloat16[bitwise], file=sys.stderr, flush=True)
    text = TEXT.format(
        steps=STEPS, batch=BATCH, accumulation=ACCUMULATION, eps=EPS, tolerance=TOLERANCE, flipped=1 / FLIPPED,
        margin=MARGIN, torch=torch.__version__, deepspeed=deepspeed.__version__, float32=table(columns),
        bfloat16=table(bfloat16), seconds=time.monotonic() - began,
    )
    write_atomic(DOCUMENT, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
