"""Pull the plug again and again: a smoke-sized table is killed inside every stage, then compared with a quiet run.

    python -m tests.chaos kills=40 sharded=6 install=3 seed=0 out=build/chaos      (make chaos KILLS=40)
    python -m tests.chaos kills=7 sharded=0 install=0 small=1                      what the tests run

All happens in a copy of the code below `out`, with data and results of its own. A quiet run comes first; from when it
entered and left each stage the moments of the kills are drawn, seeded, as many in each stage. Then the same command is
started and killed, again and again, and at last left to end. Every file must be equal, byte by byte, but for those that
hold times. Processes are forks of one that has imported everything. Two-process trainings and the installer follow.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("draw", "train", "checkpoint", "posthoc", "generate", "score", "table")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
# They hold times or, the logs, what processes print: they differ between any two runs.
TIMED = {"status.json", "provenance.json", "speed.json", "digests.json", ".lock", "train.log", "generate.log"}
HANGS = 900.0  # seconds after which a process counts as hanging
# Java, which CIDEr needs, starts for seconds: the small form has a target without it.
FULL = ["table=smoke", "methods=zero_shot,full_ft,dare,spider", "jobs=1", "checkpoint_steps=1",
        "train.epochs=2"]
SMALL = ["table=smoke", "methods=full_ft,dare", "targets=iconqa", "jobs=1", "checkpoint_steps=1",
         "train.epochs=2", "train.limit=12", "train.batch_size=4", "train.micro_batch_size=4",
         "eval.limit=4"]
SMALL_COUNTS = {"train": 12, "validation": 4, "test": 4}


@dataclass(frozen=True)
class Span:
    """When the quiet run was in a stage.

    Attributes:
        label: stage and what it works on, e.g. "score llava-coco-spider-s0-1a2b3c4d okvqa".
        start: seconds since the run began.
        length: seconds.
    """

    label: str
    start: float
    length: float

    @property
    def stage(self) -> str:
        """The stage alone."""
        return self.label.split()[0]


@dataclass(frozen=True)
class Kill:
    """One kill: in the first of these spans that a process enters.

    Attributes:
        span: the one that was drawn.
        labels: it, and those that will do if an earlier kill came later than drawn.
        delay: seconds after entering it; at the latest it happens before the stage is left.
        signal: which.
    """

    span: Span
    labels: frozenset[str]
    delay: float
    signal: signal.Signals


class Watch:
    """Notes in a file which stage this process enters and leaves, and kills it in the chosen one.

    Args:
        events: the file.
        kill: what to do.
    """

    def __init__(self, events: Path, kill: Kill | None) -> None:
        self._file = os.open(events, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
        self._kill = kill
        self._stack: list[str] = []
        self._began = time.monotonic()

    @contextlib.contextmanager
    def inside(self, label: str) -> Iterator[None]:
        """Be in a stage."""
        self._stack.append(label)
        self._note("enter", label)
        kill = self._kill if self._kill and label in self._kill.labels else None
        token = threading.Lock()
        if kill:
            self._kill = None
            threading.Thread(target=self._later, args=(kill, token), daemon=True).start()
        try:
            yield
            if kill:
                self._fire(kill, token)
        finally:
            self._note("leave", label)
            self._stack.pop()

    def _later(self, kill: Kill, token: Any) -> None:
        time.sleep(kill.delay)
        self._fire(kill, token)

    def _fire(self, kill: Kill, token: Any) -> None:
        if token.acquire(blocking=False):
            self._note("killed", self._stack[-1] if self._stack else "between")
            os.kill(os.getpid(), kill.signal)

    def _note(self, what: str, label: str) -> None:
        os.write(self._file, f"{what}\t{label}\t{time.monotonic() - self._began:.4f}\n".encode())


def instrument(watch: Callable[[], Watch]) -> None:
    """Wrap what begins and ends a stage; nothing else of the program is touched."""
    from benchmark.pocket.world import suite
    from benchmark.reporting import outputs
    from benchmark.running.worker import Worker
    from benchmark.spec import cell_id
    from benchmark.training.trainer import CellTrainer

    def wrap(owner: Any, name: str, label: Callable[..., str]) -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            with watch().inside(label(*args)):
                return inner(*args, **options)

        setattr(owner, name, wrapped)

    def stage(_: Any, stage: str, cell: Any, *rest: Any) -> str:
        kind, _, dataset = stage.partition("/")
        kind = "posthoc" if kind == "train" and cell.method.posthoc else kind.replace("summary", "score")
        return f"{kind} {cell_id(cell)} {dataset}".rstrip()

    wrap(suite, "draw_dataset", lambda name, *_: f"draw {name}")
    wrap(Worker, "stage", stage)
    wrap(CellTrainer, "_save_checkpoint", lambda self, *_: (
        f"checkpoint {cell_id(self.run.cell)} {self.state.global_step}"
    ))
    wrap(outputs, "report", lambda *_: "table")


def attempt(
    arguments: Sequence[str], events: Path, kill: Kill | None, log: Path, look: Callable[[int], None] | None = None
) -> int:
    """Run the command line in a fork of this process.

    Args:
        arguments: of `python -m benchmark`.
        events: gets the stages.
        kill: when to kill it, and how.
        log: what it prints is appended to it.
        look: called with its number all the while.

    Returns:
        Its exit code, minus the number of the signal that ended it.

    Raises:
        TimeoutError: it hangs.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(stream, target)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.setswitchinterval(0.0005)  # the kill should not wait for the interpreter
            watch = Watch(events, kill)
            instrument(lambda: watch)
            from benchmark.cli import main

            code = main(arguments)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if look is not None:
            look(child)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"still running after {HANGS:.0f} s, see {log}")


def spans(events: Path) -> list[Span]:
    """Return the stages of a run, in the order in which they began."""
    entered, found = {}, []
    for line in events.read_text().splitlines():
        what, label, at = line.split("\t")
        if what == "enter":
            entered[label] = float(at)
        elif what == "leave":
            found.append(Span(label, entered[label], float(at) - entered[label]))
    return sorted(found, key=lambda span: span.start)


def choose(quiet: Sequence[Span], count: int, seed: int) -> list[Kill]:
    """Draw kills, as many in each stage, in the order in which a run meets them."""
    rng, drawn = random.Random(seed), []
    last = {stage: max((span.start for span in quiet if span.stage == stage), default=0.0) for stage in STAGES}
    for number in range(count):
        stage = STAGES[number % len(STAGES)]
        span = rng.choice([span for span in quiet if span.stage == stage])
        drawn.append((span, rng.random() * span.length, SIGNALS[rng.randrange(len(SIGNALS))]))
    trains = {span.label.split()[1]: span.start for span in quiet if span.stage == "train"}

    def moment(item: tuple[Span, float, signal.Signals]) -> tuple[float, int, float]:
        # Those in the saving of states come before the others in the same training, or these would pass them by.
        span, now = item[0], item[0].start + item[1]
        if span.stage in ("train", "checkpoint"):
            return trains[span.label.split()[1]], int(span.stage == "train"), now
        return now, 0, now

    drawn.sort(key=moment)
    return [
        Kill(span, frozenset(
            other.label for other in quiet
            if other == span or other.start > (span.start if other.stage == span.stage else last[span.stage])
        ), delay, chosen)
        for span, delay, chosen in drawn
    ]


def killed_in(events: Path) -> str | None:
    """Return the stage in which a run was killed, None if it was not."""
    lines = [line.split("\t") for line in events.read_text().splitlines()]
    return next((label.split()[0] for what, label, _ in lines if what == "killed"), None)


def contents(root: Path) -> dict[str, bytes]:
    """Return all files below a folder but those with times; those hidden ones too that a cut-off write left."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*")) if path.is_file() and path.name not in TIMED
    }


def differences(quiet: Path, killed: Path) -> tuple[int, list[str], list[str]]:
    """Compare two folders.

    Returns:
        (files compared, those that differ or are in one only, leftovers of cut-off writes outside cells).
    """
    one, other = contents(quiet), contents(killed)
    left = [name for name in other.keys() - one.keys() if Path(name).name[0] == "." and not name.startswith("cells/")]
    names = (one.keys() | other.keys()) - set(left)
    wrong = [
        f"{name}: {'differs' if name in one and name in other else 'only in one'}"
        for name in sorted(names) if one.get(name) != other.get(name)
    ]
    for path in sorted(killed.glob("cells/*/status.json")):
        status = json.loads(path.read_text())
        if status["state"] != "done":
            wrong.append(f"{path.parent.name}: {status['state']}")
    return len(names), wrong, left


def table(count: int, seed: int, small: bool, out: Path) -> list[str]:
    """Make the table once quietly and once with kills, and compare.

    Args:
        count: kills.
        seed: of their moments.
        small: few items.
        out: scratch folder.

    Returns:
        What is wrong.
    """
    from benchmark.spec import ROOT as here

    _import_all()
    data, log = here / "data", out / "output.txt"
    if small:
        from benchmark.pocket.world import suite

        names = tuple(suite.POCKET.counts)
        suite.POCKET = suite.Suite(dict.fromkeys(names, SMALL_COUNTS))
    asked = ["run", *(SMALL if small else FULL)]
    if small:
        asked += [f"dataset.{name}.counts.{split}={number}" for name in names
                  for split, number in SMALL_COUNTS.items()]
        asked += [f"dataset.textvqa_no_ocr.counts.{split}={number}" for split, number in SMALL_COUNTS.items()]
    began = time.monotonic()
    code = attempt([*asked, f"results={out / 'quiet'}"], out / "quiet.events", None, log)
    if code:
        return [f"the quiet run ended with {code}, see {log}"]
    data.rename(out / "quiet-data")
    quiet = spans(out / "quiet.events")
    print(f"quiet run: {time.monotonic() - began:.1f} s, {len(quiet)} stages, "
          + ", ".join(f"{name} {number}" for name, number in Counter(span.stage for span in quiet).items()))
    wrong, hits, events = [], Counter(), out / "killed.events"
    command = [*asked, f"results={out / 'killed'}"]
    for number, kill in enumerate(choose(quiet, count, seed), 1):
        began = time.monotonic()
        code, hit = attempt(command, events, kill, log), killed_in(events)
        took = time.monotonic() - began
        print(f"kill {number:>2}  {kill.signal.name:<7}  {kill.span.label} + {kill.delay:.3f} s: "
              f"{'hit ' + hit if hit else 'not met'}, exit code {code}, {took:.1f} s", flush=True)
        if hit is None:
            wrong.append(f"kill {number} was not met")
        elif code != CODES[kill.signal]:
            wrong.append(f"kill {number}: exit code {code}, {CODES[kill.signal]} was expected, see {log}")
        hits[hit] += 1
    began = time.monotonic()
    code = attempt(command, events, None, log)
    print(f"left to end: exit code {code}, {time.monotonic() - began:.1f} s")
    if code:
        wrong.append(f"left to itself the run ended with {code}, see {log}")
    print("kills per stage: " + ", ".join(f"{stage} {hits[stage]}" for stage in STAGES))
    missed = [stage for stage in STAGES if hits[stage] < count // len(STAGES)]
    wrong += [f"{stage}: only {hits[stage]} kills" for stage in missed]
    for what, one, other in (("data", out / "quiet-data", data), ("results", out / "quiet", out / "killed")):
        same, found, left = differences(one, other)
        print(f"{what}: {same} files compared, {len(found)} differ, {len(left)} leftovers of cut-off writes")
        wrong += found
    return wrong


def _import_all() -> None:
    """Import what runs need, once for all forks; nothing computes yet, so no thread is started."""
    for name in (
        "matplotlib.pyplot", "torch", "benchmark.cli", "benchmark.config.request", "benchmark.reporting.radar",
        "benchmark.models", "benchmark.reporting.outputs", "benchmark.training.posthoc", "benchmark.reporting.render",
        "benchmark.running.runner", "benchmark.reporting.tables",
        "benchmark.training.train", "benchmark.training.generate", "eval.score",
    ):
        importlib.import_module(name)


# -- several processes ----------------------------------------------------------------------------------------------

VICTIMS = ("rank 0", "rank 1", "all ranks", "the program", "rank 1", "all ranks")


class Hunter:
    """Kills processes of a sharded training a moment after a step.

    Args:
        results: folder of the run.
        step: the row of train.jsonl to wait for.
        delay: seconds after it.
        victim: one of VICTIMS.
    """

    def __init__(self, results: Path, step: int, delay: float, victim: str) -> None:
        self.hit: str | None = None
        self._results, self._step, self._delay, self._victim = results, step, delay, victim
        self._seen: float | None = None
        self._began = time.time_ns()

    def __call__(self, program: int) -> None:
        """Look, and kill if it is time; `program` is the process that started the others."""
        if self.hit is not None:
            return
        if self._seen is None:
            # A training that goes on puts its old rows back when it starts.
            rows = sum(
                path.read_bytes().count(b"\n") for path in self._results.glob("cells/*/train.jsonl")
                if path.stat().st_mtime_ns > self._began
            )
            self._seen = time.monotonic() if rows >= self._step else None
        elif time.monotonic() >= self._seen + self._delay:
            ranks = self._ranks(program)
            chosen = {"the program": [program], "all ranks": list(ranks.values())}.get(
                self._victim, [number for rank, number in ranks.items() if self._victim == f"rank {rank}"]
            )
            for number in chosen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
                    self.hit = self._victim

    def _ranks(self, program: int) -> dict[str, int]:
        """Return the process numbers of this program's ranks; those of one killed before may still be ending."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                ours = b"benchmark.running.rank" in words and any(str(self._results).encode() in word for word in words)
                if ours and descends(int(folder.name), program):
                    for item in (folder / "environ").read_bytes().split(b"\0"):
                        if item.startswith(b"RANK="):  # torchrun itself has none
                            found[item[5:].decode()] = int(folder.name)
        return found


def descends(number: int, ancestor: int) -> bool:
    """Return whether a process was started by another one, or by one that it started."""
    while number > 1 and number != ancestor:
        number = int((Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[1])
    return number == ancestor


def sharded(count: int, seed: int, out: Path) -> list[str]:
    """Kill one rank, all, or the program that started them, in trainings of two processes under ZeRO-2 and ZeRO-3.

    Returns:
        What is wrong.
    """
    _import_all()
    rng, log, wrong = random.Random(seed), out / "sharded.txt", []
    for engine, kills in (("zero2", count - count // 2), ("zero3", count // 2)):
        if not kills:
            continue
        # After its own data: a run without a table is a cell and its answers.
        asked = ["run", "models=llava_pocket", "method=spider", *(item for item in SMALL if "table" not in item
                 and "methods" not in item), f"engine={engine}", "gpus=2", "train.micro_batch_size=2"]
        quiet, killed = out / f"quiet-{engine}", out / f"killed-{engine}"
        events = out / "sharded.events"
        began = time.monotonic()
        if code := attempt([*asked, f"results={quiet}"], events, None, log):
            return [*wrong, f"the quiet run of {engine} ended with {code}, see {log}"]
        print(f"{engine}: quiet run {time.monotonic() - began:.1f} s", flush=True)
        steps = sum(path.read_bytes().count(b"\n") for path in quiet.glob("cells/*/train.jsonl"))
        first = 0 if engine == "zero2" else count - count // 2
        for number, step in enumerate(sorted(rng.randrange(1, steps) for _ in range(kills)), first):
            began = time.monotonic()
            hunter = Hunter(killed, step, rng.random() * 0.2, VICTIMS[number % len(VICTIMS)])
            code = attempt([*asked, f"results={killed}"], events, None, log, hunter)
            expected = -9 if hunter.hit == "the program" else 1
            print(f"{engine}, kill {number + 1}  after step {step} of {steps}: {hunter.hit or 'nothing hit'}, exit "
                  f"code {code}, {time.monotonic() - began:.1f} s", flush=True)
            if hunter.hit is None or code != expected:
                wrong.append(f"{engine}, kill {number + 1}: exit code {code}, {expected} was expected, see {log}")
        code = attempt([*asked, f"results={killed}"], events, None, log)
        same, found, _ = differences(quiet, killed)
        print(f"{engine}: left to end: exit code {code}; {same} files compared, {len(found)} differ", flush=True)
        wrong += [f"{engine}: {text}" for text in found]
    return wrong


# -- installation ---------------------------------------------------------------------------------------------------


def installation(count: int, seed: int, out: Path) -> list[str]:
    """Kill `make` while it installs a stub package into a virtual environment, then let it end.

    Returns:
        What is wrong.
    """
    rng, log = random.Random(seed), out / "install.txt"
    quiet, killed = (_stub_project(out / name) for name in ("install-quiet", "install-killed"))
    began = time.monotonic()
    if code := _make(quiet, log):
        return [f"the quiet installation ended with {code}, see {log}"]
    length, wrong = time.monotonic() - began, []
    for number in range(1, count + 1):
        chosen, delay = rng.choice(SIGNALS[:3]), 0.7 * rng.random() * length  # it may be faster than the first time
        code = _make(killed, log, delay, chosen)
        print(f"installation, kill {number}  {chosen.name:<7}  after {delay:.2f} of {length:.2f} s: exit code {code}",
              flush=True)
    code = _make(killed, log)
    one, other = (_packages(folder) for folder in (quiet, killed))
    print(f"installation left to end: exit code {code}, {len(one)} files, {len(one ^ other)} differ")
    if code:
        wrong.append(f"left to itself the installation ended with {code}, see {log}")
    return wrong + [f"installation: {name} is in one only" for name in sorted(one ^ other)]


def _stub_project(folder: Path) -> Path:
    """Write a project with our installer and one requirement that needs no network."""
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    shutil.copy(ROOT / "Makefile", folder)
    package = folder / "benchmark" / "profiling"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").write_text("")
    (package / "doctor.py").write_text("import stub\nassert len(stub.NUMBERS) == 1000\n")
    (folder / "constraints.txt").write_text("stub==1.0\n")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\ndependencies = ["stub"]\n[project.optional-dependencies]\ndev = []\n'
    )
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "stub-1.0-py3-none-any.whl", "w") as wheel:
        files = {"stub/__init__.py": "NUMBERS = list(range(1000))\n"}
        files |= {f"stub/part{number}.py": "x = 1\n" * 200 for number in range(300)}
        files["stub-1.0.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: stub\nVersion: 1.0\n"
        files["stub-1.0.dist-info/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr("stub-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    return folder


def _make(folder: Path, log: Path, delay: float | None = None, chosen: int = signal.SIGKILL) -> int:
    """Install, and kill all processes of the installation after a while, as a terminal or a scheduler does."""
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")}
    environment = {**outer, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels")}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            ["make", ".venv/.installed"], cwd=folder, env=environment, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        code = process.wait(delay if delay is not None else HANGS)
    except subprocess.TimeoutExpired:
        code = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, chosen)
    return process.wait() if code is None else code


def _packages(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in (folder / ".venv").rglob("*")
        if "__pycache__" not in path.parts
    }


# -- command line ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Copy the code and run there; see the module."""
    given = {"kills": "40", "sharded": "6", "install": "3", "seed": "0", "small": "0"}
    given["out"] = str(ROOT / "build" / "chaos")
    for item in arguments:
        key, equals, value = item.partition("=")
        if key not in given or not equals or (key != "out" and not value.isdigit()):
            print(f"error: {item}: expected {', '.join(f'{name}=' for name in given)} with numbers.", file=sys.stderr)
            return 2
        given[key] = value
    out = Path(given["out"]).absolute()
    given["out"], tree = str(out), out / "tree"  # absolute, or the copy would copy itself below itself
    if tree != ROOT:
        if out.exists() and not (tree / "benchmark").is_dir():
            print(f"error: out={out} exists and is not from an earlier run. Name a new folder.", file=sys.stderr)
            return 2
        shutil.rmtree(out, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("benchmark", "methods", "eval", "conf", "tests", "results/published", ".ci"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        shutil.copy(ROOT / "Makefile", tree)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "tests.chaos", *(f"{key}={value}" for key, value in given.items())]
        return subprocess.run(command, cwd=tree, env=environment).returncode
    count, installs, seed = int(given["kills"]), int(given["install"]), int(given["seed"])
    wrong = table(count, seed, given["small"] == "1", out) if count else []
    wrong += sharded(int(given["sharded"]), seed, out) if given["sharded"] != "0" else []
    wrong += installation(installs, seed, out) if installs else []
    print("\n".join([f"{len(wrong)} faults:", *wrong]) if wrong else "chaos: everything is equal, bit for bit.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
