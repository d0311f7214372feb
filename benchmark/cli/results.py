"""Commands about finished cells: score, report, compare, verify, inspect, publish, export."""

from __future__ import annotations

import re

from benchmark.cli.arguments import overrides_of, refuse_beside, split
from benchmark.core.errors import FAILED, UserError, counted, printable
from benchmark.core.files import user_path


def score(arguments: list[str]) -> int:
    """score stored answers again, without a model"""
    from benchmark.config.request import request
    from benchmark.core.progress import Lines
    from benchmark.planning import plan as planning
    from benchmark.reporting import outputs
    from benchmark.running import runner
    from benchmark.store.cells import Store

    asked = request(overrides_of(arguments))
    outputs.check_one_setting(asked)
    store = Store(asked.results)
    store.check_writable()
    scored = runner.rescore(planning.make(asked, store), store, Lines())
    if not scored:
        raise UserError(f"No cell of this grid has all its answers in {store.cells}. Run it first.")
    outputs.report(asked, planning.make(asked, store), store)
    return 0


def report(arguments: list[str]) -> int:
    """write the report: one HTML file with claims, tables, figures and answers, from finished cells"""
    from benchmark.studies.report import run as write_report

    return write_report(overrides_of(arguments))


def compare(arguments: list[str]) -> int:
    """compare two results folders cell by cell (default: your run and the published reference)"""
    from benchmark.config.request import request
    from benchmark.publishing.compare import compare as compare_folders
    from benchmark.publishing.compare import describe, line
    from benchmark.spec import WORK, at_root

    overrides, folders = split(arguments)
    if len(folders) > 2:
        raise UserError(f"compare takes at most two results folders, got {', '.join(folders)}.")
    unread = [(), ("results",), ("results", "profile")][len(folders)]
    refuse_beside(f"compare {' '.join(folders)}", overrides, unread, "the folders are given")
    asked = request(overrides, grid=False)
    reference = at_root(asked.profile.reference) if asked.profile.reference else None
    ours = user_path(folders[0]) if folders else asked.results
    theirs = user_path(folders[1]) if len(folders) > 1 else reference
    if theirs is None:
        raise UserError(f"Profile {asked.profile.id} has no reference. Give two folders: compare A B.")
    if len(folders) < 2 and not theirs.is_dir():
        raise UserError(
            f"The published reference, {asked.profile.reference}, is not in {WORK}: it comes with a clone of the "
            f"repository, not with an installed package. Name both folders: compare {ours} CLONE/"
            f"{asked.profile.reference}."
        )
    gaps, alone = compare_folders(ours, theirs)
    for gap in gaps:
        print(describe(gap))
    for name in alone:
        print(f"{name}  not in {theirs}")
    print(line(gaps, theirs, alone))
    return 0


def verify(arguments: list[str]) -> int:
    """check a results folder: digests, items, answers scored again, averages, tables, provenance (--sample=N)"""
    from benchmark.config.request import request
    from benchmark.core.progress import long_work
    from benchmark.publishing.verify import summary
    from benchmark.publishing.verify import verify as check

    sample = [item.partition("=")[2] for item in arguments if item.startswith("--sample=")]
    if sample and not re.fullmatch(r"[1-9]\d{0,5}", sample[-1]):
        raise UserError(
            f"--sample={sample[-1]}: expected a whole number n, to score answers again in 1 of n cells (--sample=10)."
        )
    rest = [item for item in arguments if not item.startswith("--sample=")]
    overrides, folders = split(overrides_of(rest))
    if len(folders) > 1:
        raise UserError(f"verify takes one results folder, got {', '.join(folders)}.")
    if folders:
        refuse_beside(f"verify {folders[0]}", overrides, ("results", "profile"), "the folder is given")
    root = user_path(folders[0]) if folders else request(overrides, grid=False).results
    with long_work("verify") as told:
        found = check(
            root, lambda fault: print(printable(str(fault)), flush=True), int(sample[-1]) if sample else 1, told=told
        )
    print(summary(found, root))
    return FAILED if found.faults else 0


def inspect(arguments: list[str]) -> int:
    """show one cell: settings, stages, scores, a few answers"""
    from benchmark.config.request import request
    from benchmark.publishing.show_cell import describe
    from benchmark.store.cells import Store

    overrides, names = split(arguments)
    if len(names) != 1:
        raise UserError("inspect needs one cell: a folder name of `list cells`, or its beginning.")
    print(describe(Store(request(overrides, grid=False).results), names[0]))
    return 0


def publish(arguments: list[str]) -> int:
    """copy finished cells, tables, figures to the reference (table=table5 figure=fig5); --partial: what is done"""
    from benchmark.config.request import check_used, request
    from benchmark.core.progress import Lines
    from benchmark.publishing.publish import publish as publish_tables
    from benchmark.running.runner import prepare

    overrides = overrides_of(arguments, ["partial", "rates", "drop"])
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
    if "--rates" in arguments:
        from benchmark.studies import learning_rate

        requests += learning_rate.requests(requests[0].models, rest)
    for one in requests:  # keys contain the digests of the data
        prepare(one, Lines())
    done = publish_tables(requests, "--partial" in arguments, "--drop" in arguments)
    before = f", {done.before} of them before" * bool(done.before)
    print(f"Published to {done.folder}: {counted(done.cells, 'cell')}{before}.")
    return 0


def restore(arguments: list[str]) -> int:
    """write published cells into the results folder, without weights: a run on another machine goes on from them"""
    from benchmark.config.request import request
    from benchmark.publishing.restore import restore as restore_cells

    asked = request(overrides_of(arguments), grid=False)
    done = restore_cells(asked)
    there = f", {len(done.there)} were there" * bool(done.there)
    print(f"Restored to {asked.results}: {counted(len(done.written), 'cell')}{there}.")
    if done.stale:
        print(f"Left out, because other code, data or settings made them: {', '.join(done.stale)}. They run again.")
    return 0


def export(arguments: list[str]) -> int:
    """write a tuned cell as a standard checkpoint: export CELL DIR"""
    from benchmark.config.request import request
    from benchmark.store.cells import Store

    overrides, words = split(arguments)
    if len(words) != 2:
        raise UserError("export needs a cell (a folder name of `list cells`, or its beginning) and a new folder.")
    from benchmark.publishing.export import export as write

    print(f"Written: {write(Store(request(overrides, grid=False).results), words[0], user_path(words[1]))}")
    return 0
