"""`make all`: run all missing cells, make every table and figure, then the report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from benchmark.config.overrides import without
from benchmark.config.request import check_used, request, unused_of
from benchmark.core.errors import INTERRUPTED, PREEMPTED, USER_ERROR, UserError
from benchmark.core.progress import clock
from benchmark.reporting import outputs
from benchmark.studies import learning_rate, named_figures

TABLES = ("table5", "table6", "table3", "table4", "table2", "variants")
FIGURES = ("fig1", "fig3", "plane", "forgetting", "fig5", "fig6", "fig7")
RATES = ("full_ft", "spider")
NARROWING = ("table=", "methods=", "method=", "targets=", "target=", "dataset=")


def run(overrides: Sequence[str]) -> int:
    """Make everything, continue after failures, and print the time of each part.

    Args:
        overrides: profile=, models=, seeds=, results=, jobs= and settings; each table and figure has its own methods
            and targets.

    Returns:
        0, or the first nonzero exit code; 75 and 130 stop at once.

    Raises:
        UserError: an override that belongs to one table.
    """
    wrong = [item for item in overrides if item.startswith(NARROWING)]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: `all` makes every table and figure with its own. Use run or figure.")
    # The paper lacks the rates of a second method; the rate is still chosen on Full FT alone.
    tuned = [f"methods={','.join(RATES)}", *overrides]
    asked = {name: [request([f"table={name}", *overrides], optional=True)] for name in TABLES}
    asked |= {name: named_figures.requests(name, overrides, optional=True) for name in FIGURES}
    asked["rates"] = [request(["table=table5", *tuned], optional=True)]
    check_used(list(itertools.chain.from_iterable(asked.values())))
    # A parameter applies only to methods that have it.
    own = {name: without(overrides, unused_of(requests)) for name, requests in asked.items()}
    # These two are of one seed whatever the tables have: the rates of their own, the examples of the first.
    own["rates"] = without(own["rates"], ("seeds", "seed"))
    if "fig3" in own:
        first_seed = min(cell.seed for cell in asked["fig3"][0].cells if cell.train)
        own["fig3"] = [*without(own["fig3"], ("seeds", "seed")), f"seeds={first_seed}"]
    steps: list[tuple[str, Callable[[], int]]] = [(name, _table(name, own[name])) for name in TABLES]
    steps += [(name, _figure(name, own[name])) for name in FIGURES]
    steps.append(("rates", lambda: learning_rate.run([tuned[0], *own["rates"]])))
    steps.append(("report", lambda: _report(overrides)))
    results: list[tuple[str, str, float]] = []
    first = 0
    for name, step in steps:
        print(f"\n===== {name} =====", flush=True)
        began = time.monotonic()
        try:
            code, said = step(), ""
        except UserError as error:
            code, said = USER_ERROR, str(error)
            print(f"error: {error}", flush=True)
        results.append((name, said or ("done" if code == 0 else f"exit code {code}"), time.monotonic() - began))
        first = first or code
        if code in (PREEMPTED, INTERRUPTED):
            return code
    print(f"\n===== all: {clock(sum(seconds for _, _, seconds in results))} =====")
    for name, text, seconds in results:
        print(f"{name:<12} {clock(seconds):>10}  {text.splitlines()[0]}")
    return first


def _table(name: str, overrides: Sequence[str]) -> Callable[[], int]:
    return lambda: outputs.make(request([f"table={name}", *overrides]))[0]


def _figure(name: str, overrides: Sequence[str]) -> Callable[[], int]:
    return lambda: named_figures.run(name, overrides)


def _report(overrides: Sequence[str]) -> int:
    from benchmark.studies import report

    return report.run(overrides)
