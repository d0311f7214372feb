"""The command line: one verb, then Hydra overrides. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.cli import usage
from benchmark.cli.usage import OPTIONS
from benchmark.core import signals, terminal
from benchmark.core.errors import Locked, UserError, counted, did_you_mean, printable
from benchmark.core.files import user_path
from benchmark.core.variables import neutralise_process

FAULTY, USER_ERROR, PREEMPTED, INTERRUPTED = 1, 2, 75, 130

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
  gpus=0,1                   CUDA devices to spread the cells over; with engine=zero*, gpus=8 means eight per cell
  gpu=4090x8                 plan only: cards that need not be here
  hostfile=FILE              DeepSpeed's, to train each cell on several machines
  any.key=VALUE              any key of conf/, e.g. train.epochs=10 method.momentum=0.9; a comma list or range(a,b)
                             makes one cell per value
Exit codes: 0 done, 1 cells failed, 2 something to correct, 75 stopped by SIGTERM or SIGUSR1, 130 stopped by ctrl-C.
"""

# Completes `spiderbench`, which is then an alias or a function for `python -m benchmark`.
COMPLETION = """spiderbench() {{ python -m benchmark "$@"; }}
_spiderbench() {{
  local line=${{COMP_LINE:0:$COMP_POINT}} word words head
  word=${{line##* }}
  head=${{word%%=*}}
  if [ "$COMP_CWORD" -le 1 ]; then words='{verbs}'
  elif [ "$head" = "$word" ]; then words='{keys}'; compopt -o nospace
  else
    case $head in
{cases}
    *) words='' ;;
    esac
    word=${{word#*=}}; word=${{word##*,}}
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _spiderbench spiderbench
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
    """Return the program's version, as pyproject.toml has it."""
    import tomllib

    from benchmark.spec import ROOT

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _help() -> str:
    width = max(map(len, VERBS))
    lines = (f"  {name:<{width}}  {_said(name).partition(chr(10))[0]}" for name in VERBS)
    return HELP.format(verbs="\n".join(lines))


def _said(verb: str) -> str:
    """Return what a verb does, in a line or two."""
    return VERBS[verb].__doc__ or ""


def _overrides(arguments: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Return the overrides among arguments, with `--jobs 2` as jobs=2.

    Raises:
        UserError: an unknown option, or one without its value.
    """
    overrides, rest = [], list(arguments)
    while rest:
        item = rest.pop(0)
        name, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("-"):
            overrides.append(item)
        elif name in OPTIONS:
            if not equals and not rest:
                raise UserError(f"{item} needs a value, e.g. {name}=2.")
            overrides.append(f"{name}={value if equals else rest.pop(0)}")
        elif name not in flags:
            raise UserError(f"Unknown option {item!r}.{did_you_mean(name, [*OPTIONS, *flags])}")
    return overrides


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (overrides, the rest)."""
    overrides = [item for item in arguments if "=" in item and not item.startswith("-")]
    return overrides, [item for item in arguments if item not in overrides]


def _refuse_beside(command: str, overrides: Sequence[str], keys: Sequence[str], why: str) -> None:
    """Refuse keys that a command reads, but not beside the words that it was given.

    Raises:
        UserError: names them.
    """
    if unread := [item for item in overrides if item.partition("=")[0] in keys]:
        raise UserError(f"{command} does not read {', '.join(unread)}: {why}. Leave it out.")


# ---------------------------------------------------------------------------------------------------------------
# Verbs: the first line of each docstring is its line in the help


def run(arguments: list[str]) -> int:
    """train, generate and score every cell that is missing, then print the table"""
    from benchmark.config.compose import request

    if "--cfg" in arguments:
        return _show_config(arguments)
    asked = request(_overrides(arguments, ["cells-only"]))
    from benchmark.planning import plan
    from benchmark.reporting import outputs
    from benchmark.running import runner
    from benchmark.store.cells import Store

    outputs.check_one_setting(asked)
    code = runner.run(asked)
    if code in (runner.PREEMPTED, runner.INTERRUPTED) or "--cells-only" in arguments:
        return code
    store = Store(asked.results)
    planned = plan.make(asked, store)
    if any(item.done for item in planned):
        outputs.measure(asked, planned, store)
        outputs.report(asked, planned, store)
        _compare_with_reference(asked.profile.reference, store.root, [item.id for item in planned if item.done])
    return code


def sweep(arguments: list[str]) -> int:
    """run cells over the values of any keys, write a tidy CSV and line plots: sweep train.epochs=5,10 [name=NAME]"""
    from benchmark.studies.sweep import run as run_sweep

    overrides = _overrides(arguments)
    named = [item.removeprefix("name=") for item in overrides if item.startswith("name=")]
    if named and not re.fullmatch(r"[\w.+-]+", named[-1]):
        raise UserError(f"name={named[-1]}: a file name of letters, digits, '.', '_', '+' and '-' is needed.")
    rest = [item for item in overrides if not item.startswith("name=")]
    return run_sweep(named[-1] if named else None, None, rest)


def figure(arguments: list[str]) -> int:
    """draw a figure of conf/figure, running what it lacks: figure fig5"""
    from benchmark.studies import named_figures

    overrides, words = _split(_overrides(arguments))
    if len(words) != 1:
        raise UserError(f"figure needs one name.{did_you_mean(' '.join(words), named_figures.names())}")
    return named_figures.run(words[0], overrides)


def all_(arguments: list[str]) -> int:
    """every table and figure from whatever cells are missing, then the report"""
    from benchmark.studies.everything import run as run_everything

    return run_everything(_overrides(arguments))


def report(arguments: list[str]) -> int:
    """write the report: one HTML file with claims, tables, figures and answers, from finished cells"""
    from benchmark.studies.report import run as write_report

    return write_report(_overrides(arguments))


def zeroshot(arguments: list[str]) -> int:
    """score the untuned models alone and hold them against the paper's zero-shot row"""
    from benchmark.config.compose import request
    from benchmark.paper import zero_shot_gate
    from benchmark.planning import plan
    from benchmark.reporting import outputs
    from benchmark.running import runner
    from benchmark.store.cells import Store

    given = _overrides(arguments)
    table = [] if any(item.startswith("table=") for item in given) else ["table=table5"]
    asked = request([*table, *given, "methods=zero_shot"])
    code = runner.run(asked)
    if code != runner.DONE:
        return code
    store = Store(asked.results)
    planned = plan.make(asked, store)
    outputs.report(asked, planned, store)
    zero_shot_gate.hold(asked, planned, store)
    return code


def _show_config(arguments: list[str]) -> int:
    """Print every cell as its spec, one YAML document each."""
    import yaml

    from benchmark.config.compose import request
    from benchmark.spec import cell_id, plain

    place = arguments.index("--cfg")
    if arguments[place + 1 : place + 2] not in (["job"], ["all"]):
        raise UserError("--cfg needs the word job: --cfg job.")
    asked = request(_overrides([*arguments[:place], *arguments[place + 2 :]]))
    for cell in asked.cells:
        print(f"--- # {cell_id(cell)}")
        print(yaml.safe_dump(plain(cell), sort_keys=False, allow_unicode=True), end="")
    return 0


def _compare_with_reference(reference: str | None, ours: Path, cells: Sequence[str]) -> None:
    """Print one line on how far the cells of a run are from the published numbers, if there are any."""
    from benchmark.publishing.compare import compare, line
    from benchmark.spec import ROOT, at_root
    from benchmark.store.cells import Store

    theirs = at_root(reference) if reference else None
    if theirs is None or theirs == ours or not any(Store(theirs).cells.glob("*/scores.json")):
        return
    gaps, alone = compare(ours, theirs, cells)
    print(line(gaps, theirs.relative_to(ROOT) if theirs.is_relative_to(ROOT) else theirs, alone))


def plan(arguments: list[str]) -> int:
    """show the cells of a grid: what is done, what is left, time and space; --sbatch writes a Slurm array script"""
    from benchmark.config.compose import request
    from benchmark.planning import plan as planning
    from benchmark.planning.cost import Costs
    from benchmark.store.cells import Store

    flags = [item.partition("=")[2] for item in arguments if item.startswith("sbatch=")]
    overrides = _overrides([item for item in arguments if not item.startswith("sbatch=")], ["sbatch"])
    asked = request(overrides)
    store = Store(asked.results)
    sbatch = "--sbatch" in arguments
    planned = planning.make(asked, store, compute=sbatch)  # a plan takes no time; jobs are for what is really missing
    if asked.gpu is None:
        costs = Costs(store, asked.profile)
    else:
        from benchmark.planning import forecast

        costs = forecast.Forecast(store, asked, asked.gpu)
    if sbatch:
        from benchmark.running.slurm import script

        print(script(planned, asked, costs, overrides, " ".join(flags)), end="")
        return 0
    print(planning.describe(planned, asked, costs))
    if asked.gpu is not None:
        print(forecast.describe(planned, asked, costs))
    elif any(model.architecture for model in asked.models):
        print("Add gpu=4090x8 (make: GPU=4090x8) for hours, memory and disk on such cards.")
    return 0


def score(arguments: list[str]) -> int:
    """score stored answers again, without a model"""
    from benchmark.config.compose import request
    from benchmark.core.progress import Lines
    from benchmark.planning import plan as planning
    from benchmark.reporting import outputs
    from benchmark.running import runner
    from benchmark.store.cells import Store

    asked = request(_overrides(arguments))
    outputs.check_one_setting(asked)
    store = Store(asked.results)
    store.check_writable()
    scored = runner.rescore(planning.make(asked, store), store, Lines())
    if not scored:
        raise UserError(f"No cell of this grid has all its answers in {store.cells}. Run it first.")
    outputs.report(asked, planning.make(asked, store), store)
    return 0


def compare(arguments: list[str]) -> int:
    """compare two results folders cell by cell (default: your run and the published reference)"""
    from benchmark.config.compose import request
    from benchmark.publishing.compare import compare as compare_folders
    from benchmark.publishing.compare import describe, line
    from benchmark.spec import at_root

    overrides, folders = _split(arguments)
    if len(folders) > 2:
        raise UserError(f"compare takes at most two results folders, got {', '.join(folders)}.")
    unread = [(), ("results",), ("results", "profile")][len(folders)]
    _refuse_beside(f"compare {' '.join(folders)}", overrides, unread, "the folders are given")
    asked = request(overrides, grid=False)
    reference = at_root(asked.profile.reference) if asked.profile.reference else None
    ours = user_path(folders[0]) if folders else asked.results
    theirs = user_path(folders[1]) if len(folders) > 1 else reference
    if theirs is None:
        raise UserError(f"Profile {asked.profile.id} has no reference. Give two folders: compare A B.")
    gaps, alone = compare_folders(ours, theirs)
    for gap in gaps:
        print(describe(gap))
    for name in alone:
        print(f"{name}  not in {theirs}")
    print(line(gaps, theirs, alone))
    return 0


def verify(arguments: list[str]) -> int:
    """check a results folder: digests, items, answers scored again, averages, tables, provenance (--sample=N)"""
    from benchmark.config.compose import request
    from benchmark.core.progress import long_work
    from benchmark.publishing.verify import summary
    from benchmark.publishing.verify import verify as check

    sample = [item.partition("=")[2] for item in arguments if item.startswith("--sample=")]
    if sample and not re.fullmatch(r"[1-9]\d{0,5}", sample[-1]):
        raise UserError(f"--sample={sample[-1]}: score the answers of one of so many cells again, e.g. --sample=10.")
    rest = [item for item in arguments if not item.startswith("--sample=")]
    overrides, folders = _split(_overrides(rest))
    if len(folders) > 1:
        raise UserError(f"verify takes one results folder, got {', '.join(folders)}.")
    if folders:
        _refuse_beside(f"verify {folders[0]}", overrides, ("results", "profile"), "the folder is given")
    root = user_path(folders[0]) if folders else request(overrides, grid=False).results
    with long_work("verify") as told:
        found = check(
            root, lambda fault: print(printable(str(fault)), flush=True), int(sample[-1]) if sample else 1, told=told
        )
    print(summary(found, root))
    return FAULTY if found.faults else 0


def list_(arguments: list[str]) -> int:
    """show models, methods, datasets, tables, profiles; `list cells` shows finished cells"""
    from benchmark.config.compose import options_of, request
    from methods.registry import METHODS

    overrides, words = _split(arguments)
    if words not in ([], ["cells"]):
        raise UserError(f"list {' '.join(words)}: only `list` and `list cells` exist.")
    if not words:
        _refuse_beside("list", overrides, ("results",), "only list cells does")
    asked = request(overrides, grid=False)
    if words:
        from benchmark.running.worker import headline
        from benchmark.store.cells import Store

        store = Store(asked.results)
        for folder in store.all_cells():
            print(printable(f"{folder.name}  {store.status(folder)['state']}  {headline(folder)}").rstrip())
        return 0
    width = max(map(len, METHODS))
    print("methods   " + "\n          ".join(f"{name:<{width}}  {entry.name}" for name, entry in METHODS.items()))
    roles: dict[str, list[str]] = {"target": [], "upstream": [], "extra": []}
    for dataset in asked.datasets.values():
        roles[dataset.role].append(dataset.id)
    print(f"targets   {', '.join(roles['target'])}")
    print(f"upstream  {', '.join(roles['upstream'])} (beside them: {', '.join(roles['extra'])})")
    for group in ("model", "table", "profile"):
        chosen = f" (now: {asked.profile.id})" if group == "profile" else ""
        print(f"{group + 's':<9} {', '.join(options_of(group))}{chosen}")
    return 0


def inspect(arguments: list[str]) -> int:
    """show one cell: settings, stages, scores, a few answers"""
    from benchmark.config.compose import request
    from benchmark.publishing.show_cell import describe
    from benchmark.store.cells import Store

    overrides, names = _split(arguments)
    if len(names) != 1:
        raise UserError("inspect needs one cell: a folder name of `list cells`, or its beginning.")
    print(describe(Store(request(overrides, grid=False).results), names[0]))
    return 0


def data(arguments: list[str]) -> int:
    """prepare (get the real datasets), draw (the profile's own), audit (check them), show NAME (a contact sheet)"""
    from benchmark.config.compose import request
    from benchmark.spec import at_root

    actions = {"prepare": _prepare, "draw": _draw, "audit": audit, "show": None}
    if not arguments or arguments[0] not in actions:
        raise UserError(f"data needs an action.{did_you_mean(arguments[0] if arguments else '', actions)}")
    action, rest = actions[arguments[0]], arguments[1:]
    if action is not None:
        return action(rest)
    from benchmark.audit import contact_sheet

    overrides, words = _split(rest)
    asked = request(overrides, grid=False)
    return contact_sheet.main(words, asked.datasets, at_root(asked.data_root))


def _prepare(arguments: list[str]) -> int:
    from benchmark.config.compose import request
    from benchmark.data import prepare
    from benchmark.spec import at_root

    settings = {"profile=", "data_root=", "dataset.", "protocol."}
    overrides = [item for item in arguments if any(item.startswith(name) for name in settings)]
    asked = request(overrides, grid=False)
    if asked.profile.prepare:
        raise UserError(
            f"Profile {asked.profile.id} draws its own data (data draw). Say which real ones: profile=paper."
        )
    used = (*asked.profile.upstream, *asked.profile.targets, *asked.profile.extra)
    rest = [item for item in arguments if item not in overrides]
    return prepare.main(rest, {name: asked.datasets[name] for name in used}, at_root(asked.data_root))


def _draw(arguments: list[str]) -> int:
    from benchmark.config.compose import request
    from benchmark.core.progress import Lines
    from benchmark.running.runner import draw

    asked = request(_overrides(arguments), grid=False)
    draw(asked.profile, asked.data_root, Lines())
    print(f"The datasets of profile {asked.profile.id} are in {asked.data_root}.")
    return 0


def audit(arguments: list[str]) -> int:
    """data (baselines that show a model must look), protocol (rendered samples), published (the paper's tables)"""
    from benchmark.config.compose import request
    from benchmark.spec import at_root

    overrides, words = _split(arguments)
    if words == ["published"]:
        from benchmark.audit.paper_tables import main as audit_published

        return audit_published()
    if words not in ([], ["data"], ["protocol"]):
        kinds = ("data", "protocol", "published")
        raise UserError(f"audit {' '.join(words)}: no such audit.{did_you_mean(words[0], kinds)}")
    if any(item.startswith(("model=", "models=")) for item in overrides):
        overrides = ["methods=zero_shot", *overrides]  # a model is named, no cell is asked for
    asked = request(overrides, grid=False)
    if words == ["protocol"]:
        from benchmark.audit.protocol import main as audit_protocol

        used = (*asked.profile.upstream, *asked.profile.targets, *asked.profile.extra)
        model = asked.models[0] if asked.models else None
        return audit_protocol([asked.datasets[name] for name in used], at_root(asked.data_root), model)
    from benchmark.audit import data as auditing
    from benchmark.models import places
    from benchmark.models.loading import load_model
    from benchmark.running.worker import prepare_process

    bases = {}
    prepare_process(asked.threads, asked.device, None)
    for model in asked.models:
        if places.checkpoint(model).path.is_dir():
            bases[model.name] = auditing.answerer(load_model(model, asked.dtype, asked.device))
        else:
            print(f"{model.id} has no checkpoint in {model.checkpoint}: no blind answers from it.")
    used = [asked.datasets[name] for name in (*asked.profile.upstream, *asked.profile.targets, *asked.profile.extra)]
    return auditing.main(used, at_root(asked.data_root), bases, asked.results / "audit")


def pretrain(arguments: list[str]) -> int:
    """make a base model from nothing: pretrain model=NAME"""
    from benchmark.pocket.pretrain.run import main as pretrain_main

    return int(pretrain_main(arguments) or 0)


def rates(arguments: list[str]) -> int:
    """choose each model's learning rate: a grid of Full FT on validation data"""
    from benchmark.studies.learning_rate import run as choose_rates

    return choose_rates(_overrides(arguments))


def publish(arguments: list[str]) -> int:
    """copy finished cells, tables, figures to the reference (table=table5 figure=fig5); --partial: what is done"""
    from benchmark.config.compose import check_used, request
    from benchmark.publishing.publish import publish as publish_tables

    overrides = _overrides(arguments, ["partial", "drop"])
    named = [item for item in overrides if item.startswith(("table=", "figure="))]
    words = {item.partition("=")[0]: item.partition("=")[2].split(",") for item in named}
    rest = [item for item in overrides if item not in named]
    tables = words.get("table", ["table5", "table6"])
    requests = [request([f"table={table}", *rest], optional=True) for table in tables]
    for name in words.get("figure", []):
        from benchmark.studies import named_figures

        name, _, model = name.partition("@")  # fig5@MODEL: the cells of one model
        requests += named_figures.requests(name, [*rest, *([f"models={model}"] if model else [])], optional=True)
    check_used(requests)
    done = publish_tables(requests, "--partial" in arguments, "--drop" in arguments)
    before = f", {done.before} of them before" * bool(done.before)
    print(f"Published to {done.folder}: {counted(done.cells, 'cell')}{before}.")
    return 0


def export(arguments: list[str]) -> int:
    """write a tuned cell as a standard checkpoint: export CELL DIR"""
    from benchmark.config.compose import request
    from benchmark.store.cells import Store

    overrides, words = _split(arguments)
    if len(words) != 2:
        raise UserError("export needs a cell (a folder name of `list cells`, or its beginning) and a new folder.")
    from benchmark.publishing.export import export as write

    print(f"Written: {write(Store(request(overrides, grid=False).results), words[0], user_path(words[1]))}")
    return 0


def bench(arguments: list[str]) -> int:
    """measure what each method's optimizer step costs (size=small or llava15_7b, methods=, device=, out=FILE);
    bench scorers: how long scoring takes"""
    if arguments[:1] == ["scorers"]:
        from benchmark.profiling.bench_scorers import main as bench_scorers

        return bench_scorers(arguments[1:])
    from benchmark.profiling.bench_methods import main as bench_methods

    return bench_methods(arguments)


def doctor(arguments: list[str]) -> int:
    """check Python, packages, Java, processors, memory and disk; with profile=paper also GPUs, checkpoints, data"""
    from benchmark.profiling.doctor import main as doctor_main

    if words := [item for item in arguments if "=" not in item and item != "--packages"]:
        raise UserError(f"doctor {' '.join(words)}: it takes keys only, e.g. doctor profile=paper.")
    return doctor_main(arguments)


def completion(arguments: list[str]) -> int:
    """print completion of commands, keys and their values for bash: source <(python -m benchmark completion)"""
    from benchmark.config.compose import AXES, GROUPS, RUN_KEYS, options_of
    from methods.registry import METHODS

    if arguments not in ([], ["bash"]):
        raise UserError(f"completion {' '.join(arguments)}: only bash is known. Use completion bash.")
    keys = " ".join(f"{key}=" for key in (*GROUPS, *AXES, *RUN_KEYS))
    values = {group: options_of(group) for group in GROUPS}
    values |= {"model": options_of("model"), "models": options_of("model")}
    values |= {"method": [*METHODS], "methods": [*METHODS]}
    cases = "\n".join(f"    {key}) words='{' '.join(names)}' ;;" for key, names in values.items())
    print(COMPLETION.format(verbs=" ".join(VERBS), keys=keys, cases=cases), end="")
    return 0


def accept(arguments: list[str]) -> int:
    """developers: accept code of a stage that changes no number, accept STAGE ... | all (--bump: that does)"""
    from benchmark.publishing.accept import main as accept_main

    reference = [user_path(item.partition("=")[2]) for item in arguments if item.startswith("reference=")]
    names = [item for item in arguments if item != "--bump" and not item.startswith("reference=")]
    if not names:
        raise UserError("accept needs a stage, e.g. accept train, or all.")
    return accept_main(names, "--bump" in arguments, reference[-1] if reference else None)


def gpu_check(arguments: list[str]) -> int:
    """measure a GPU with full-size models of random weights: gpu-check part=train|memory|eval"""
    from benchmark.profiling.gpu_check import main as check_main

    return check_main(arguments)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": run, "zeroshot": zeroshot, "plan": plan, "score": score, "compare": compare, "verify": verify, "list": list_,
    "inspect": inspect, "doctor": doctor, "data": data, "audit": audit, "pretrain": pretrain, "rates": rates,
    "publish": publish, "export": export, "sweep": sweep, "figure": figure, "all": all_, "report": report,
    "bench": bench, "gpu-check": gpu_check, "accept": accept, "completion": completion,
}
