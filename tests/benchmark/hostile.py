"""Generated hostile input: each case changes one thing of a small world, calls the command line, and undoes it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import shutil
import signal
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmark.cli import main
from benchmark.spec import ROOT
from benchmark.store.cells import Store
from tests.benchmark.cells import Tables, unfold
from tests.benchmark.models import tiny

ITEMS = {"train": 6, "validation": 2, "test": 4}
SECONDS = 10.0  # of one case, on a processor of its own
HANG = 150      # by the clock, where others use the processors too
SEED = 7
NASTY: list[Any] = [
    None, True, -1, 0, 1.5, 10**400, float("nan"), float("inf"), "", " ", [], {}, [[]], [None, "x"], {"a": 1},
    "../../../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "con\\nul", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07",
    "\r\n\r\n", "\x00", "\u202etxt.exe", "\u2028", "\ud800", "<script>alert(1)</script>", "{0.__class__}", "{question}",
    "%s%n", "$(reboot)", "`id`", "x" * 200_000, "😀" * 50, "'; DROP TABLE cells;--",
]


class Hang(BaseException):
    """A case took too long; no Exception, so that nothing takes it for a fault of the input."""


@dataclass
class Outcome:
    """What a call did."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class World:
    """Small data of all eight datasets, a tiny checkpoint, a results folder with a finished cell."""

    root: Path
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """The only folder that a command may write to."""
        return self.root / "results"

    def settings(self, *more: str) -> list[str]:
        """Return overrides that use this world."""
        names = ("okvqa", "textvqa", "textvqa_no_ocr", "ocrvqa", "gqa", "flickr30k", "coco", "iconqa", "scienceqa")
        counts = [f"dataset.{name}.counts.{split}={count}" for name in names for split, count in ITEMS.items()]
        return [
            "models=llava_pocket", "methods=full_ft", f"data_root={self.root / 'data'}", *counts,
            f"model.checkpoint={self.root / 'checkpoint'}", f"results={self.results}", "jobs=1", *more,
        ]

    def call(self, arguments: list[str]) -> Outcome:
        """Run the command line in this process."""
        out, err = io.StringIO(), io.StringIO()
        began = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(HANG):
            code = main(arguments)
        return Outcome(code, out.getvalue(), err.getvalue(), time.process_time() - began)

    def case(self, kind: str, name: str, arguments: list[str]) -> None:
        """Call and note what is wrong with the outcome: one clear message, or a result."""
        before = tree(self.root, self.results)
        try:
            done = self.call(arguments)
        except BaseException as error:
            self.counts[kind, "traceback"] += 1
            self.faults.append(f"{kind}, {name}: {type(error).__name__}: {str(error)[:300]}")
            return
        wrong = list(faults_of(done, name))
        if tree(self.root, self.results) != before:
            wrong.append("something outside of the results folder was written")
        self.faults += [f"{kind}, {name}: {what}" for what in wrong]
        outcome = "wrong" if wrong else {0: "a result", 1: "faults named"}.get(done.code, "one message")
        self.counts[kind, outcome] += 1

    def summary(self) -> str:
        """Return counts per kind and outcome, one line per kind."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.counts))
        lines = [
            f"{kind:<12} {sum(self.counts[k] for k in self.counts if k[0] == kind):>4} cases: "
            + ", ".join(f"{count} {what}" for (of, what), count in sorted(self.counts.items()) if of == kind)
            for kind in kinds
        ]
        return "\n".join([*lines, f"{'together':<12} {sum(self.counts.values()):>4} cases, {len(self.faults)} faults"])


def faults_of(done: Outcome, name: str) -> Iterator[str]:
    """Yield what is wrong with an outcome."""
    text = done.out + done.err
    if done.code not in (0, 1, 2):
        yield f"exit code {done.code}"
    if done.code == 2 and done.err.count("error:") != 1 and " failed; finished cells are kept. Fix" not in done.out:
        yield f"{done.err.count('error:')} messages: {done.err[:200]!r}"
    if done.code == 2 and not 20 <= len(text) <= 6000:
        yield f"a message of {len(text)} characters: {text[:200]!r}"
    if "Traceback" in text:
        yield f"a traceback: {text[-300:]!r}"
    if any(not letter.isprintable() and letter not in "\n\r" for letter in text):
        yield f"control characters: {[x for x in text if not x.isprintable() and x not in chr(10)][:3]!r}"
    if done.seconds > SECONDS:
        yield f"{done.seconds:.1f} s"


def tree(root: Path, without: Path) -> list[tuple[str, int]]:
    """Return path and size of every file below a folder, except in one of its folders."""
    found, todo = [], [root]
    while todo:
        for path in todo.pop().iterdir():
            if path == without:
                continue
            if path.is_dir() and not path.is_symlink():
                todo.append(path)
            else:
                found.append((str(path), path.lstat().st_size))
    return sorted(found)


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Interrupt what waits for something that never comes."""
    def stop(*_: Any) -> None:
        raise Hang(f"nothing for {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Put files back as they were, whatever became of them."""
    contents = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    finally:
        for path, content in contents.items():
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.is_dir():
                shutil.rmtree(path)
            if content is not None:
                path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------------
# Configurations

KEYS = (
    "train.epochs", "train.batch_size", "train.micro_batch_size", "train.learning_rate", "train.warmup_ratio",
    "train.scheduler", "train.scope", "train.last_layers", "train.limit", "train.loss_group", "eval.batch_size",
    "eval.limit", "eval.split", "dtype", "device", "threads", "seeds", "seed", "methods", "models", "targets", "jobs",
    "gpus", "results", "data_root", "profile", "table", "engine", "table.id", "table.title", "model.id",
    "model.family",
    "model.max_length", "model.preprocess", "model.checkpoint", "method.momentum", "method.nothing", "dataset.coco.id",
    "dataset.gqa.prompt", "dataset.gqa.metric", "dataset.gqa.max_new_tokens", "dataset.gqa.counts.test",
    "dataset.gqa.stop", "dataset.iconqa.options", "protocol.iconqa", "hostfile", "checkpoints", "gate", "gpu",
    "nothing", "zero_optimization",
)
VALUES = (
    "", "null", "true", "-1", "0", "1e400", "nan", "-inf", "1e-320", "range(0,1000000000)", "range(0,1e12,1e-3)",
    "choice(1,2)", "glob(*)", "[" * 3000, "[" * 40 + "]" * 40, "{a: 1}", "{a: {b: [1, 2]}}", "[1,2,3]", "1,2,2,x", "'",
    '"', "${oc.env:HOME}", "${nothing}", "${.}", "???", "../../../../tmp/evil", "/proc/self/mem", "/dev/full", "..",
    "a/b", "x" * 300, "x" * 20_000, "\x00", "\x1b[2J", "\udcff", "\u202e", "<img src=x onerror=alert(1)>", "%s", "é",
    "😀", "~", "int(3)", "shuffle(1,2,3)", "sort(3,1)", "interval(0,1)", "99999999999999999999999", "os:system",
    "builtins:eval", "examples.my_method:TopKGradient", "tests:x", "spider,spider,spider", "1,2,3,4,5,6,7,8,9",
    "--help", "@file", "1", "2", "1e-3", "spider", "iconqa", "llava_pocket", "float32", "cpu", "table6", "single",
)


def config_case(world: World, pick: random.Random) -> None:
    """One or two settings of any kind with any value, for a command that runs nothing."""
    given = [f"{pick.choice(KEYS)}={pick.choice(VALUES)}" for _ in range(pick.choice((1, 1, 2)))]
    if pick.random() < 0.08:
        given.append(pick.choice(("nonsense", "=", "==", "~train", "+x=1", "--nothing", "--jobs", "-", "", "a=b=c")))
    verbs = [["plan"], ["run", "--cfg", "job"], ["list"], ["list", "cells"], ["compare"], ["plun"]]
    # A folder of the user's choice is written to, so another one only with commands that write nothing.
    verb = pick.choice(verbs if any(item.startswith("results=") for item in given) else [*verbs, ["score"]])
    table = [f"table={pick.choice(('table5', 'table6', 'smoke'))}"] if pick.random() < 0.7 else []
    settings = table + world.settings(*given)
    world.case("config", " ".join([*verb, *given])[:120], [verb[0], *settings, *verb[1:]])


# ---------------------------------------------------------------------------------------------------------------
# Records

ANNOTATIONS = {
    "okvqa": "*.json", "textvqa": "*.json", "ocrvqa": "dataset.json", "gqa": "*questions.json",
    "iconqa": "iconqa_data/*.json", "scienceqa": "*.json", "coco": "dataset_coco.json", "flickr30k": "*.json",
}


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every value inside a JSON value, a few per list."""
    found = [path] if path else []
    items = list(value.items())[:40] if isinstance(value, dict) else list(enumerate(value))[:3] if (
        isinstance(value, list)) else []
    for key, item in items:
        found += places(item, (*path, key))
    return found


def spoil(content: Any, pick: random.Random) -> None:
    """Replace, remove or rename a value somewhere in a JSON value."""
    *parents, last = pick.choice(places(content))
    node = content
    for key in parents:
        node = node[key]
    what = pick.random()
    if what < 0.7:
        node[last] = pick.choice(NASTY)
    elif what < 0.85:
        del node[last]
    elif isinstance(node, dict):
        node[str(pick.choice(NASTY))[:1000]] = node.pop(last)
    else:
        node.append(node[last])


def whole(data: bytes, pick: random.Random) -> bytes:
    """Damage a text file as a whole."""
    return pick.choice((
        b"", b"\x00" * 100, data[: pick.randrange(1, len(data))], b"\xff\xfe" + data, b"[" * 100_000, b"[1]", b"null",
        b'{"a": ' * 50_000, b"1" * 10_000, b"\xef\xbb\xbf" + data, data[:50] + b"\xe9" + data[50:], b"NaN", data * 2,
    ))


def plan_of(world: World, dataset: str) -> list[str]:
    """Return a command that reads every record and decodes every image, and runs nothing."""
    target = dataset if dataset in ("iconqa", "scienceqa", "coco", "flickr30k") else "iconqa"
    return ["plan", *world.settings("table=table5", f"targets={target}"), "--sbatch"]


def record_case(world: World, pick: random.Random) -> None:
    """One annotation file with a fault."""
    dataset = pick.choice(sorted(ANNOTATIONS))
    path = pick.choice(sorted((world.root / "data" / dataset).glob(ANNOTATIONS[dataset])))
    with kept(path):
        if pick.random() < 0.7:
            content = json.loads(path.read_text())
            for _ in range(pick.choice((1, 1, 3))):
                spoil(content, pick)
            path.write_text(json.dumps(content))
        elif pick.random() < 0.1:
            path.unlink()
            path.symlink_to(path.name) if pick.random() < 0.5 else path.mkdir()
        else:
            path.write_bytes(whole(path.read_bytes(), pick))
        world.case("record", f"{dataset}/{path.name}", plan_of(world, dataset))


# ---------------------------------------------------------------------------------------------------------------
# Images


def png(width: int, height: int, depth: int = 1) -> bytes:
    """Return a PNG of that size that is nearly empty: its pixels take no room until they are decoded."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + (width * depth + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(min(height, 4000))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(mode: str, kind: str, size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
    """Return an image file."""
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind, **options)
    return out.getvalue()


def several(kind: str) -> bytes:
    """Return a file of three frames."""
    frames = [Image.new("RGB", (5 + n, 5 + n), (90 * n, 0, 0)) for n in range(3)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


IMAGES: dict[str, Callable[[], bytes]] = {
    "bomb": lambda: png(50_000, 50_000), "smaller bomb": lambda: png(12_000, 12_000),
    "grey bomb": lambda: png(9000, 9000, 8), "row": lambda: png(60_000, 1), "column": lambda: png(1, 60_000),
    "strip": lambda: png(3, 3000),
    "zero wide": lambda: png(0, 5), "too large to count": lambda: png(2**31 - 1, 2**31 - 1),
    "one pixel": lambda: png(1, 1),
    "16 bits": lambda: saved("I;16", "PNG"), "32 bits": lambda: saved("I", "TIFF"),
    "floats": lambda: saved("F", "TIFF"),
    "cmyk": lambda: saved("CMYK", "JPEG"), "lab": lambda: saved("LAB", "TIFF"),
    "two colours": lambda: saved("1", "PNG"),
    "palette": lambda: saved("P", "PNG"), "alpha": lambda: saved("LA", "PNG"), "ycbcr": lambda: saved("YCbCr", "JPEG"),
    "transparent gif": lambda: saved("P", "GIF", transparency=0), "webp": lambda: saved("RGBA", "WEBP"),
    "animated gif": lambda: several("GIF"), "animated png": lambda: several("PNG"), "pages": lambda: several("TIFF"),
    "bmp": lambda: saved("RGB", "BMP"), "ico": lambda: saved("RGBA", "ICO"), "eps": lambda: saved("RGB", "EPS"),
    "pdf": lambda: saved("RGB", "PDF"), "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": lambda: b"no image", "empty": lambda: b"", "zeros": lambda: b"\0" * 4096, "php": lambda: b"<?php exit; ?>",
    "large": lambda: saved("RGB", "JPEG", (5000, 4000)), "gzip": lambda: gzip.compress(saved("RGB", "PNG")),
}


def image_case(world: World, pick: random.Random) -> None:
    """One image that is none, or an odd one; a few of them cut short or changed in places."""
    dataset = pick.choice(("gqa", "okvqa", "ocrvqa", "coco"))
    path = pick.choice(sorted((world.root / "data" / dataset).rglob("*.jpg")))
    name = pick.choice(sorted(IMAGES))
    data = bytearray(IMAGES[name]())
    if pick.random() < 0.25 and data:
        data = data[: pick.randrange(len(data))]
        name += ", cut"
    elif pick.random() < 0.25 and data:
        for _ in range(5):
            data[pick.randrange(len(data))] = pick.randrange(256)
        name += ", altered"
    with kept(path):
        path.write_bytes(bytes(data))
        world.case("image", f"{dataset}/{path.name}: {name}", plan_of(world, dataset))


# ---------------------------------------------------------------------------------------------------------------
# Checkpoints


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def spoil_weights(folder: Path, pick: random.Random) -> str:
    """Damage the tensors; return how."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = pick.choice(sorted(tensors))
    what = pick.choice((
        "nan", "inf", "dtype", "bool", "shape", "scalar", "more", "fewer", "header", "cut", "pickle", "zip",
    ))
    if what in ("nan", "inf"):
        tensors[name].view(-1)[-1] = float(what)
    elif what in ("dtype", "bool"):
        tensors[name] = tensors[name].to(torch.int32 if what == "dtype" else torch.bool)
    elif what == "shape":
        tensors[name] = tensors[name].flatten().clone()
    elif what == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif what == "more":
        tensors["../../evil"] = torch.zeros(2)
    elif what == "fewer":
        del tensors[name]
    if what in ("header", "cut"):
        data = bytearray(path.read_bytes())
        if what == "header":
            data[:8] = struct.pack("<Q", pick.choice((0, 2**63, len(data), 10**15)))
        path.write_bytes(data[: len(data) // 2] if what == "cut" else data)
    elif what in ("pickle", "zip"):
        torch.save({"weight": Evil(folder.parent / "executed")}, folder / "pytorch_model.bin")
        path.unlink()
        if what == "zip":
            (folder / "pytorch_model.bin").rename(path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})
    return f"{what} ({name})"


def spoil_json(folder: Path, pick: random.Random) -> str:
    """Damage a configuration; return how."""
    path = folder / pick.choice(("config.json", "config.json", "preprocessor_config.json", "tokenizer_config.json",
                                 "tokenizer.json", "generation_config.json"))
    if not path.is_file():
        path = folder / "config.json"
    if pick.random() < 0.25:
        path.write_bytes(whole(path.read_bytes(), pick))
        return f"{path.name} as a whole"
    content = json.loads(path.read_text())
    *parents, last = pick.choice([place for place in places(content) if len(place) < 4])
    node = content
    for key in parents:
        node = node[key]
    node[last] = pick.choice((*NASTY, 10**9, 10**6, 2**40, -5))
    path.write_text(json.dumps(content))
    return f"{path.name}: {'.'.join(map(str, (*parents, last)))} = {str(node[last])[:40]!r}"


def use_of(world: World) -> list[str]:
    """Return a command that loads the checkpoint and answers with it."""
    settings = world.settings("table=table6", "targets=iconqa", "methods=zero_shot", "eval.limit=1")
    return ["run", *settings, "--cells-only"]


def checkpoint_case(world: World, pick: random.Random) -> None:
    """A checkpoint with one fault, loaded, and used if it loads."""
    folder = world.root / "checkpoint"
    shutil.copytree(folder, world.root / "good")
    try:
        name = (spoil_weights if pick.random() < 0.5 else spoil_json)(folder, pick)
        shutil.rmtree(world.results / "cells", ignore_errors=True)
        world.case("checkpoint", name, use_of(world))
        if (world.root / "executed").exists():
            world.faults.append(f"checkpoint, {name}: a pickle was executed")
    finally:
        shutil.rmtree(folder)
        (world.root / "good").rename(folder)


# ---------------------------------------------------------------------------------------------------------------
# Answers and other files of a results folder


def finished_cell(world: World) -> Path:
    """Write a published cell into the world's results as a run leaves it; return its folder."""
    published = Store(ROOT / "results" / "pocket")
    source = next(folder for folder in published.all_cells() if "-scienceqa-full_ft-" in folder.name)
    return unfold(source, world.root / "finished" / "cells" / source.name)


def answer_case(world: World, pick: random.Random) -> None:
    """A finished cell one of whose files a stranger wrote, looked at, checked or compared."""
    folder = next((world.root / "finished" / "cells").iterdir())
    path = pick.choice([folder / name for name in (
        "answers/gqa.jsonl", "answers/gqa.jsonl", "answers/gqa.jsonl", "items/gqa.jsonl.gz", "scores.json",
        "provenance.json", "train.jsonl", "cell.yaml", "status.json",
    )])
    with kept(path, folder / "status.json"):
        packed = path.suffix == ".gz"
        if path.name == "status.json":
            path.write_text(json.dumps(pick.choice((
                [], {"stages": []}, {"state": "\x1b[2J", "stages": {}}, {"state": "done", "stages": {"train": 1}}, 5,
                {"state": "failed", "stages": {}, "error": {"message": "\x1b[31m", "traceback": "\x07"}},
            ))))
        elif path.name == "cell.yaml":
            bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
            path.write_text(pick.choice((
                bomb, "!!python/object/apply:os.system ['touch executed']", "[" * 2000, "", "a: b: c", "\x00", "- x",
                path.read_text().replace("seed: 0", "seed: '../..'"), path.read_text().replace("gqa", "../gqa"),
            )))
        else:
            data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
            if pick.random() < 0.3:
                data = whole(data, pick)
            else:
                lines = data.decode().splitlines() if path.suffix in (".jsonl", ".gz") else [data.decode()]
                for place in (0, 1):
                    if place < len(lines):
                        row = json.loads(lines[place])
                        spoil(row, pick)
                        lines[place] = json.dumps(row)
                data = "\n".join(lines).encode()
            path.write_bytes(gzip.compress(data) if packed and pick.random() < 0.8 else data)
        own = f"results={world.root / 'finished'}"
        verb = pick.choice((
            ["inspect", folder.name, own], ["inspect", folder.name, own], ["list", "cells", own],
            ["verify", str(world.root / "finished"), "--sample=100000"],
            ["compare", str(world.root / "finished"), str(folder.parents[1])],
            ["inspect", pick.choice(("../..", "*", "", "\x1b[2J", "x" * 5000)), own],
        ))
        kind = "answers" if path.parent.name == "answers" else "results"
        world.case(kind, f"{verb[0]}, {path.name}", verb)


def table_case(world: World, pick: random.Random) -> None:
    """A published folder one of whose tables a stranger wrote: other bytes, or other values under a true schema."""
    source = next((world.root / "finished" / "cells").iterdir())
    root = world.results / "published"  # a report is written into the folder that it is about
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        Tables([source]).write(root)
        path = root / f"{pick.choice(('cells', 'items', 'logs'))}.parquet"
        if pick.random() < 0.4:
            path.write_bytes(whole(path.read_bytes(), pick))
        else:
            table = pq.read_table(path)
            column = pick.choice(table.column_names)
            value = pick.choice([
                None, 5, 1.5, "", "../../x", "\x1b[2J", "[" * 2000, "{}", '{"seconds": 1}', [1], b"\xff",
            ])
            changed = pa.array([value] * len(table))
            pq.write_table(table.set_column(table.column_names.index(column), column, changed), path)
        own = f"results={root}"
        verb = pick.choice((
            ["inspect", source.name, own], ["list", "cells", own], ["verify", str(root), "--sample=100000"],
            ["compare", str(world.root / "finished"), str(root)], ["report", own],
        ))
        world.case("results", f"{verb[0]}, {path.name}", verb)


CASES: dict[Callable[[World, random.Random], None], int] = {
    config_case: 110, record_case: 65, image_case: 50, checkpoint_case: 30, answer_case: 60, table_case: 40,
}


def write_world(root: Path) -> World:
    """Draw the data, write the checkpoint, copy a finished cell."""
    from benchmark.pocket.world.splits import TARGETS, UPSTREAM
    from benchmark.pocket.world.suite import Suite

    world = World(root)
    Suite(dict.fromkeys(UPSTREAM + TARGETS, ITEMS)).draw(root / "data")
    tiny.write("llava", root / "checkpoint")
    finished_cell(world)
    return world


def sound(world: World) -> list[str]:
    """Return what goes wrong before anything is changed; it must be nothing, or no case would mean anything."""
    finished = world.root / "finished"
    calls = [
        *(plan_of(world, dataset) for dataset in ("iconqa", "scienceqa", "coco", "flickr30k")), use_of(world),
        ["verify", str(finished), "--sample=100000"],
        ["inspect", next((finished / "cells").iterdir()).name, f"results={finished}"],
    ]
    done = [(call, world.call(call)) for call in calls]
    return [f"{call}: {one.out}{one.err}" for call, one in done if one.code != 0 or list(faults_of(one, ""))]


def run(world: World) -> None:
    """Run all cases, the same in every run."""
    for make, count in CASES.items():
        for number in range(count):
            make(world, random.Random(f"{SEED} {make.__name__} {number}"))
