"""The command line: one verb, then Hydra overrides. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence

from benchmark.cli import datasets, machine, merging, project, results, runs, usage
from benchmark.core import signals, terminal
from benchmark.core.errors import INTERRUPTED, PREEMPTED, USER_ERROR, Locked, UserError, did_you_mean, printable
from benchmark.core.variables import neutralise_process

HELP = """SpiderBench: fine-tune multimodal LLMs without forgetting, one command per table.

  python -m benchmark run table=table5                      a table of the paper
  python -m benchmark run table=table5 methods=full_ft,spider models=MODEL seeds=0,1,2
  python -m benchmark run method=spider model=MODEL dataset=iconqa train.epochs=5,10 seed=1
  python -m benchmark run ... --cfg job                     only show the resolved configuration
  python -m benchmark sweep train.epochs=5,10 targets=coco  any keys, a CSV and line plots
  python -m benchmark run table=table5 checkpoints=mine:DIR a checkpoint of your own as a row

{verbs}

`VERB --help` shows what one command reads, with examples. Keys of run and plan:
  table= profile=            a grid of conf/table, a scale of conf/profile
  models= methods= targets= seeds=   comma lists (method=, model=, dataset=, seed= mean the same)
  results=DIR                where results go (default results/runs/<profile>)
  jobs=N (--jobs N)          cells at a time; the numbers do not depend on it
  gpus=0,1                   CUDA devices to spread the cells over; engine=zero* or fsdp2: gpus=8 means eight per cell
  gpu=4090x8                 plan only: cards that need not be here
  hostfile=FILE              DeepSpeed's, to train each cell on several machines
  any.key=VALUE              any key of conf/, e.g. train.epochs=10 method.momentum=0.9; a comma list or range(a,b)
                             makes one cell per value
Exit codes: 0 done, 1 cells failed, 2 something to correct, 75 stopped by SIGTERM or SIGUSR1, 130 stopped by ctrl-C.
"""

def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: what follows `python -m benchmark`.

    Returns:
        Exit code.
    """
    with terminal.guarded() as output:
        code = _main(arguments)
    if output.lost is None or isinstance(output.lost, BrokenPipeError | ValueError):  # `| head` has read enough
        return code
    print(
        f"error: Not all of the output could be printed: {output.lost.strerror}. Files are complete. Send the output "
        "elsewhere and run the command again to see it.",
        file=sys.stderr,
    )
    return code or USER_ERROR


def _main(arguments: Sequence[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help") and not rest:
        print(_help(), end="")
        return 0
    if verb == "help":  # help VERB
        verb, *rest = *rest, "--help"
    if verb in ("--version", "version"):
        print(f"spiderbench {version()}")
        return 0
    try:
        if verb not in VERBS:
            raise UserError(f"Unknown command {verb!r}.{did_you_mean(verb, VERBS)}")
        if "-h" in rest or "--help" in rest:
            print(usage.describe(verb, rest, _said(verb)), end="")
            return 0
        neutralise_process(launched=False)  # before anything imports torch, which reads some of them then
        with signals.raising():
            usage.refuse_unread(verb, rest)
            return VERBS[verb](rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except Locked as owner:
        print(f"error: {owner} works on a cell that this needs. Run the command again when it ends.", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        # What a command reads or writes is checked where it happens; this is a path that cannot exist at all.
        if error.filename is None:
            raise
        print(f"error: {printable(f'{error.filename}: {error.strerror}')}. Give another path.", file=sys.stderr)
        return USER_ERROR
    except ModuleNotFoundError as error:
        from benchmark.profiling.doctor import package_faults

        faults = package_faults()
        if not faults:
            raise  # every package is there: a fault of the program or of a user's own module
        print(f"error: {error}. {len(faults)} packages are missing or too old, see `doctor`. make installs them "
              f"into .venv; then use .venv/bin/python instead of {sys.executable}.", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except signals.Terminated:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return PREEMPTED


def version() -> str:
    """Return the program's version, as pyproject.toml has it, or the installed package."""
    import tomllib

    from benchmark.spec import IS_CHECKOUT, ROOT

    if not IS_CHECKOUT:
        from importlib import metadata

        return metadata.version("spiderbench")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _help() -> str:
    width = max(map(len, VERBS))
    lines = (f"  {name:<{width}}  {_said(name).partition(chr(10))[0]}" for name in VERBS)
    return HELP.format(verbs="\n".join(lines))


def _said(verb: str) -> str:
    """Return what a verb does, in a line or a few."""
    return inspect.cleandoc(VERBS[verb].__doc__ or "")


# The first line of a verb's docstring is its line in the help.
VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": runs.run, "zeroshot": runs.zeroshot, "plan": runs.plan, "score": results.score, "compare": results.compare,
    "verify": results.verify, "list": project.list_, "inspect": results.inspect, "doctor": machine.doctor,
    "data": datasets.data, "audit": datasets.audit, "pretrain": project.pretrain, "rates": runs.rates,
    "calibration": runs.calibration,
    "publish": results.publish, "restore": results.restore, "export": results.export, "merge": merging.merge,
    "sweep": runs.sweep, "figure": runs.figure,
    "all": runs.all_, "report": results.report, "bench": machine.bench, "gpu-check": machine.gpu_check,
    "model": project.model, "accept": project.accept, "completion": project.completion,
}
