"""What each command reads: keys, words and options, with examples. `VERB --help` prints it; other keys are refused."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmark.core.errors import UserError, did_you_mean
from benchmark.merging import MERGES

KEYS = {
    "profile": "a scale of conf/profile: {profile}",
    "table": "a grid of conf/table: {table}",
    "models": "a comma list of conf/model (model= means the same)",
    "methods": "a comma list of methods, or MODULE:CLASS of your own (method=)",
    "targets": "a comma list of datasets to tune on, or a module of your own (target=, dataset=)",
    "seeds": "a comma list of whole numbers (seed=)",
    "train": "training settings of conf/train: {train}",
    "engine": "how a cell is trained, of conf/engine: {engine}",
    "results": "folder of the results (default results/runs/PROFILE)",
    "jobs": "cells at a time (also --jobs N); the numbers do not depend on it",
    "gpus": "CUDA devices to spread the cells over, e.g. gpus=0,1; with engine=zero* or fsdp2, gpus=8 means 8 per cell",
    "hostfile": "DeepSpeed's file, to train each cell on several machines",
    "checkpoints": "checkpoints of your own as rows: NAME:DIR,NAME@MODEL:DIR",
    "only": "run only these cells: a comma list of names, as plan prints them",
    "gate": "if the untuned model does not score as in the paper: stop or warn",
    "radar": "scale of radar plots: points, zero_shot or full_ft",
    "gpu": "plan for GPUs that this machine need not have, e.g. gpu=4090x8: hours, memory and disk",
    "figure": "a comma list of conf/figure; fig5@MODEL takes the cells of one model",
    "name": "name of the files of a sweep (default: the swept keys)",
    "sbatch": "options for Slurm, e.g. sbatch='--partition=x --account=y'",
    "reference": "results to compare with (default: the published ones)",
    "part": "train, memory or eval",
    "device": "cpu or cuda",
    "out": "file or folder to write to",
    "size": "small or llava15_7b",
    "threads": "threads of one process; of pretrain, its processes, with one thread each",
    "compiled": "cpu: compile the methods' passes on a CPU too",
    "metrics": "a comma list of metrics",
}
GRID = ("profile", "table", "models", "methods", "targets", "seeds", "train", "engine")
PLACE = ("results", "jobs", "gpus", "hostfile")
ANY = ("",)  # every key of conf/
OPTIONS = ("jobs", "gpus", "results", "hostfile")  # keys that may be written as options: --jobs 2
DATA = ("data_root", "dataset.", "protocol.")


@dataclass(frozen=True)
class Usage:
    """What a command reads.

    Attributes:
        examples: command lines without `python -m benchmark`; {model} and {reference} stand for the default profile's.
        reads: its keys, see `KEYS`; of the aliases in AXES the plural.
        settings: how other keys of conf/ that it reads begin.
        never: how those of them begin that it has no use for.
        words: what it takes beside keys and options.
        explained: keys that the command itself refuses, with its reason.
        choices: words that it takes in the first place, for completion.
        options: option with its value -> what it does.
        parses: whether the command parses its options itself.
    """

    examples: tuple[str, ...]
    reads: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    words: str = ""
    explained: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    parses: bool = False

    def takes(self, key: str) -> bool:
        """Return whether the command does something with a key."""
        name = plural(key)
        if name in KEYS and name not in ("device", "threads"):  # these two are keys of conf/ as well
            return name in self.reads
        return name in self.reads or (key.startswith(self.settings) and not key.startswith(self.never))


def plural(key: str) -> str:
    """Return the name under which `KEYS` has a key: models for model, targets for dataset."""
    from benchmark.config.compose import AXES  # not above: doctor works without the packages that this needs

    return AXES.get(key, key)


_FOLDER = ("profile", "results")
_OTHER_GRID = ("profile", "models", "methods", "targets", "seeds", "train", "engine")
USAGES = {
    "run": Usage(
        ("run table=table5 methods=full_ft,spider seeds=0,1,2",
         "run method=spider model={model} dataset=iconqa train.epochs=5,10 seed=1"),
        (*GRID, *PLACE, "checkpoints", "only", "gate", "radar"), ANY,
        options={
            "--cfg job": "show the resolved configuration of each cell and run nothing",
            "--cells-only": "run the cells and leave the table to another command",
        },
    ),
    "zeroshot": Usage(
        ("zeroshot models={model}", "zeroshot profile=paper gate=warn"),
        ("profile", "table", "models", "targets", "engine", *PLACE, "gate"), ANY, ("train.", "method."),
    ),
    "plan": Usage(
        ("plan table=table6 methods=full_ft,spider", "plan table=table5 profile=paper gpu=4090x8"),
        (*GRID, *PLACE, "checkpoints", "only", "gate", "radar", "gpu", "sbatch"), ANY,
        options={"--sbatch": "write a Slurm array script of the missing cells"},
    ),
    "score": Usage(
        ("score table=table5", "score table=table6 methods=full_ft,spider"),
        (*GRID, "results", "checkpoints", "radar"), ANY,
    ),
    "compare": Usage(("compare", "compare results/runs/mine {reference}"), _FOLDER, words="[DIR [DIR]]"),
    "verify": Usage(
        ("verify {reference} --sample=10", "verify profile=paper"), _FOLDER, words="[DIR]",
        options={"--sample=N": "rescore one cell in N"},
    ),
    "list": Usage(("list", "list cells results={reference}"), _FOLDER, words="[cells]"),
    "inspect": Usage(
        ("inspect {model}-coco-spider-s0 results={reference}", "inspect {model}-zero_shot results={reference}"),
        _FOLDER, words="CELL",
    ),
    "doctor": Usage(
        ("doctor", "doctor profile=paper gpus=8"), ("profile", "models", "gpus", "engine", "device", "threads"), ANY,
        ("train.", "method.", "eval."), options={"--packages": "check the packages only and print only faults"},
    ),
    "data": Usage(("data draw", "data show gqa -n 16"), words="prepare | draw | audit | show", parses=True),
    "data prepare": Usage(
        ("data prepare profile=paper --from /data", "data prepare gqa coco profile=paper --no-hub"), ("profile",), DATA,
        words="[NAME ...]", parses=True,
        options={
            "--from [DATASET=]DIR": "look for files in this folder too; may be repeated",
            "--no-hub": "download nothing",
            "--group-first": "prefer the group's files to official ones and tables",
            "--splits validation": "prepare this split too",
            "--ids DATASET=FILE": "the test items to use, one id per line",
        },
    ),
    "data draw": Usage(("data draw", "data draw data_root=/tmp/drawn"), ("profile",), ("data_root",)),
    "data show": Usage(
        ("data show gqa -n 16", "data show coco --split train profile=paper"), ("profile",), DATA, words="NAME",
        parses=True,
        options={
            "-n COUNT": "items to show (default 16)", "--split NAME": "train, validation or test (default test)",
            "--out FILE": "PNG to write",
        },
    ),
    "audit": Usage(
        ("audit", "audit models={model} results=/tmp/audit"), ("profile", "models", "results", "device", "threads"),
        (*DATA, "model.", "dtype"), words="[data]",
    ),
    "audit protocol": Usage(
        ("audit protocol", "audit protocol models={model}"), ("profile", "models"), (*DATA, "model."),
        words="protocol",
    ),
    "audit published": Usage(("audit published",), words="published"),
    "model": Usage(
        ("model add /data/Qwen2.5-VL-3B-Instruct", "model add /data/InternVL3-1B-hf internvl3_1b"), ("out",),
        words="add DIR [NAME]",
    ),
    "pretrain": Usage(
        ("pretrain", "pretrain models={model}"), ("models", "threads"), (*DATA, "model."),
    ),
    "rates": Usage(
        ("rates models={model}", "rates methods=full_ft,spider jobs=2"),
        ("profile", "models", "methods", "train", "engine", *PLACE, "gate"), ANY, explained=("targets", "seeds"),
    ),
    "calibration": Usage(
        ("calibration", "calibration models={model} jobs=2"),
        ("profile", "models", "train", "engine", *PLACE, "gate"), ANY, explained=("targets", "methods", "seeds"),
    ),
    "publish": Usage(
        ("publish table=table5,table6", "publish table=table3 figure=fig5 --partial"),
        (*GRID, "figure", "results", "checkpoints", "radar"), ANY,
        options={
            "--partial": "publish what is done", "--rates": "also the cells that chose the learning rates",
            "--drop": "drop published cells that are not in this command",
        },
    ),
    "restore": Usage(("restore", "restore results=~/runs/mine"), ("profile", "results")),
    "export": Usage(
        ("export {model}-coco-spider-s0 /tmp/tuned", "export {model}-coco-full_ft-s0 /tmp/ft results=~/runs/mine"),
        _FOLDER, words="CELL DIR",
    ),
    "merge": Usage(
        ("merge dare BASE TUNED OUT method.keep=0.1 seed=0", "merge tailor BASE TUNED OUT models={model} dataset=coco"),
        ("profile", "models", "targets", "seeds"), ("method.", "data_root"),
        words="METHOD BASE TUNED [TUNED ...] OUT", choices=MERGES,
    ),
    "sweep": Usage(
        ("sweep train.epochs=5,10 targets=coco", "sweep method.momentum=0.5,0.9 methods=spider name=momentum"),
        (*_OTHER_GRID, *PLACE, "checkpoints", "gate", "name"), ANY, explained=("table",),
    ),
    "figure": Usage(
        ("figure fig5", "figure plane models={model} targets=coco"),
        (*_OTHER_GRID, *PLACE, "checkpoints", "gate"), ANY, words="NAME",
    ),
    "figure fig1": Usage(
        ("figure fig1", "figure fig1 targets=coco"), ("profile", "models", "methods", "targets", "gpus", "results"),
        ANY, words="fig1",
    ),
    "figure predict": Usage(
        ("figure predict", "figure predict models={model} targets=coco"),
        ("profile", "models", "methods", "targets", "seeds", "gpus", "results"), words="predict",
    ),
    "all": Usage(
        ("all", "all profile=paper gpus=0,1 seeds=0,1,2"),
        ("profile", "models", "seeds", "train", "engine", *PLACE, "checkpoints", "gate", "radar"), ANY,
        explained=("table", "methods", "targets"),
    ),
    "report": Usage(
        ("report", "report results={reference}"), (*_OTHER_GRID, "results", "checkpoints"), ANY,
    ),
    "bench": Usage(
        ("bench methods=full_ft,spider", "bench size=llava15_7b device=cuda out=steps.md"),
        ("size", "methods", "device", "threads", "compiled", "out"), words="[scorers]",
    ),
    "bench scorers": Usage(
        ("bench scorers", "bench scorers metrics=cider out=scorers.md"), ("metrics", "out"), words="scorers",
    ),
    "gpu-check": Usage(("gpu-check part=train", "gpu-check part=eval device=cpu"), ("part", "device", "out")),
    "accept": Usage(
        ("accept train generate", "accept all --bump"), ("reference",), words="STAGE ... | all | samples",
        options={"--bump": "raise the versions: the numbers have changed"},
    ),
    "completion": Usage(("completion", "completion bash > ~/.spiderbench.bash"), words="[bash]"),
}


def usage_of(verb: str, arguments: Sequence[str]) -> tuple[str, Usage]:
    """Return the full name of a command, such as "data draw", and what it reads."""
    if verb == "data" and arguments[:1] == ["audit"]:
        return "data audit", USAGES["audit"]
    words = [item for item in arguments if "=" not in item and not item.startswith("-")]
    name = f"{verb} {words[0]}" if words else verb
    return (name, USAGES[name]) if name in USAGES else (verb, USAGES[verb])


def refuse_unread(verb: str, arguments: Sequence[str]) -> None:
    """Refuse keys and options that a command would take and not use: who gives one believes that it does something.

    Raises:
        UserError: names them, what the command reads, and which commands read them.
    """
    name, usage = usage_of(verb, arguments)
    options = [] if usage.parses else [item for item in arguments if item.startswith("-")]
    known = [text.removeprefix("--").partition("=")[0].split()[0] for text in usage.options]
    known += [key for key in OPTIONS if usage.takes(key)]
    keys = []
    for option in options:
        if (given := option.lstrip("-").partition("=")[0]) in OPTIONS:
            keys.append(given)
        elif given not in known:
            hint = did_you_mean(given, known) if known else f" {name} has none."
            raise UserError(f"Unknown option {option!r}.{hint}")
    values = [] if not usage.parses else [  # such as GQA=DIR of --from GQA=DIR
        place + 1 for place, item in enumerate(arguments) if item.startswith("-")
    ]
    keys += [
        item.partition("=")[0] for place, item in enumerate(arguments)
        if "=" in item and not item.startswith("-") and place not in values
    ]
    unread = [key for key in dict.fromkeys(keys) if not (usage.takes(key) or plural(key) in usage.explained)]
    if unread:
        reads = [f"{key}=" for key in usage.reads]
        more = ", any key of conf/" if usage.settings == ANY else "".join(f", {key}*" for key in usage.settings)
        it = f"it reads {', '.join(reads)}{more}" if reads else "it reads no keys"
        named = ", ".join(f"{key}=" for key in unread)
        raise UserError(f"{name} does not read {named}: {it}. {_advice(unread, usage)}")


def _advice(unread: Sequence[str], usage: Usage) -> str:
    """Return what to do with keys that a command does not read."""
    hints = []
    for key in unread:
        readers = [name for name, other in USAGES.items() if plural(key) in other.reads]
        if readers:
            hints.append(f"{key}= is for {_listed(readers)}.")
        elif near := did_you_mean(key, usage.reads).partition(" Valid:")[0]:
            hints.append(near.strip())
    return " ".join([f"Leave {'it' if len(unread) == 1 else 'them'} out.", *hints])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def examples_of(usage: Usage) -> list[str]:
    """Return a command's examples with the default profile's model and reference in them."""
    from benchmark.config.request import request

    profile = request([], grid=False).profile
    return [text.format(model=profile.models[0], reference=profile.reference) for text in usage.examples]


def describe(verb: str, arguments: Sequence[str], said: str) -> str:
    """Return the help of a command.

    Args:
        verb: the command.
        arguments: what follows it; a second word may name a part of it, as in data draw.
        said: a line or a few on what it does.
    """
    from benchmark.config.compose import options_of

    name, usage = usage_of(verb, [item for item in arguments if item not in ("-h", "--help")])
    names = {group: ", ".join(options_of(group)) for group in ("profile", "table", "train", "engine")}
    keys = {f"{key}=": KEYS[key].format(**names) for key in usage.reads}
    if usage.settings == ANY:
        keys["any.key="] = "any key of conf/, e.g. train.epochs=10; a comma list or range(a,b): a cell per value"
    else:
        keys |= {f"{key}*=" if key.endswith(".") else f"{key}=": "of conf/" for key in usage.settings}
    words = usage.words.removeprefix(name.partition(" ")[2]).strip()  # "protocol" stands in "audit protocol" already
    more = ["[OPTION ...]"] * bool(usage.options) + ["[KEY=VALUE ...]"] * bool(keys)
    form = " ".join(filter(None, [name, words, *more]))
    blocks = [f"python -m benchmark {form}\n\n{textwrap.indent(said, '  ')}\n"]
    for title, lines in (("Keys", keys), ("Options", usage.options)):
        width = max(map(len, lines), default=0)
        if lines:
            blocks.append(f"{title}:\n" + "".join(f"  {key:<{width}}  {text}\n" for key, text in lines.items()))
    blocks.append("Examples:\n" + "".join(f"  python -m benchmark {text}\n" for text in examples_of(usage)))
    return "\n".join(blocks)
