"""What each row of the survey costs beside Full FT: the time of its training, and the memory that it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from benchmark.core.progress import long_work
from benchmark.planning.plan import Planned, has_source_weights
from benchmark.spec import TunedCell, cell_id, is_tuned, samples
from benchmark.store.cell_measures import footprint
from benchmark.store.cells import Store
from benchmark.studies.survey import RATE, REFERENCE, Row, Survey

STATE = 3  # float32 copies of what trains: gradient, and AdamW's two moments


def measure(survey: Survey, plan: Sequence[Planned], store: Store) -> None:
    """Measure the middle strength of each row that was not measured on any target; stops and resumes.

    Args:
        survey: from `survey.ask`.
        plan: of survey.everything. Unfinished cells, and merges whose sources have no weights here, are left out.
        store: the results.
    """
    from benchmark.running import method_cost
    from benchmark.running.worker import Worker, prepare_process

    worker, planned = Worker(store), {item.id: item for item in plan}

    todo = []
    for _, items in _middles(survey, plan):
        measurable = [pair for pair in items if has_source_weights(pair[0], plan, store)]
        if measurable and not any(method_cost.known(item, store) for item, _ in items):
            todo.append(measurable[0])
    if todo:
        first, gpus = todo[0][0].cell, survey.base.gpus
        prepare_process(first.threads, first.device, gpus[0] if gpus else None)
    with long_work("cost of each row") as told:
        for number, (item, full_ft) in enumerate(todo):
            told("measured", number, len(todo))
            method_cost.measure_beside(full_ft, [item], planned, store, worker)


def recorded(survey: Survey, plan: Sequence[Planned], store: Store) -> pd.DataFrame:
    """Return what was measured.

    Returns:
        A line per model and row: model, row; time, that of the training (a merge: of its sources' trainings and itself)
        in units of Full FT's; memory, of gradients, AdamW's two moments and what the method keeps between steps, in
        float32 copies of the weights that Full FT trains.
    """
    lines = []
    for (model, row), items in _middles(survey, plan):
        measured = [(item, full_ft, found) for item, full_ft in items if (found := footprint(store.folder(item.cell)))]
        if not measured:
            continue
        item, full_ft, found = measured[0]
        # Table 2's methods and merges, which train all that Full FT trains, were measured without "trained" before.
        line = {"model": model, "row": row.id, "memory": STATE * found.get("trained", 1.0) + found["memory"]}
        if "step_time" in found:
            longer = 1.0
            if not item.cell.method.posthoc:  # replay takes more steps
                own, usual = samples(item.cell), samples(full_ft)
                longer = own / usual if own and usual else 1.0
            line["time"] = found["step_time"] * longer
        lines.append(line)
    return pd.DataFrame(lines, columns=["model", "row", "time", "memory"])


def _middles(
    survey: Survey, plan: Sequence[Planned]
) -> Iterator[tuple[tuple[str, Row], list[tuple[Planned, TunedCell]]]]:
    """Yield for each model and row its finished cells of the middle strength, each with Full FT of the same target."""
    planned = {item.id: item for item in plan if item.done}
    for model in survey.base.models:
        usual = {cell.target: cell for cell in survey.base.cells
                 if is_tuned(cell) and cell.model.id == model.id and cell.method.id == REFERENCE}
        for row in survey.rows:
            key, grid = row.key or RATE, survey.curves[model.id, row.id].grid
            values = list(dict.fromkeys(entry.settings[key] for entry in grid))
            middle = [entry.cell for entry in grid if entry.settings[key] == values[len(values) // 2]]
            yield (model.id, row), [
                (planned[name], usual[cell.target])
                for cell in middle if is_tuned(cell) and (name := cell_id(cell)) in planned
            ]
