"""What each row of the survey costs beside Full FT: the time of its training, and the memory that it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from benchmark.core.progress import long_work
from benchmark.planning.plan import Planned
from benchmark.spec import ModelSpec, TunedCell, cell_id, is_tuned, samples
from benchmark.store.cell_measures import footprint
from benchmark.store.cells import Store, output_of
from benchmark.studies.survey import RATE, REFERENCE, Row, Survey

STATE = 3  # float32 copies of what trains: gradient, and AdamW's two moments


def measure(survey: Survey, plan: Sequence[Planned], store: Store) -> None:
    """Measure the row's middle strength where that is not known yet, on one target per model; stops and resumes.

    Args:
        survey: from `survey.ask`.
        plan: of survey.everything. Unfinished cells, and merges whose sources have no weights here, are left out.
        store: the results.
    """
    from benchmark.running import method_cost
    from benchmark.running.worker import Worker, prepare_process

    worker, planned = Worker(store), {item.id: item for item in plan}
    ready = False
    for model, row, item, full_ft in _middles(survey, plan):
        sources = [store.folder(planned[name].cell) for name in item.needs if item.cell.method.posthoc]
        if not all(output_of(source, "train").is_file() for source in sources):
            continue
        if method_cost.known(item, store) is not None:
            continue
        if not ready:
            gpus = survey.base.gpus
            prepare_process(item.cell.threads, item.cell.device, gpus[0] if gpus else None)
            ready = True
        with long_work(f"{model.id} {row.id}") as told:
            told("cost", 0, 1)
            method_cost.measure_beside(full_ft, [item], planned, store, worker)


def recorded(survey: Survey, plan: Sequence[Planned], store: Store) -> pd.DataFrame:
    """Return what was measured.

    Returns:
        A line per model and row: model, row; time, that of the training (a merge: of its sources' trainings and itself)
        in units of Full FT's; memory, of gradients, AdamW's two moments and what the method keeps between steps, in
        float32 copies of the weights that Full FT trains.
    """
    lines = []
    for model, row, item, full_ft in _middles(survey, plan):
        found = footprint(store.folder(item.cell))
        if not found:
            continue
        # Table 2's methods and merges, which train all that Full FT trains, were measured without "trained" before.
        line = {"model": model.id, "row": row.id, "memory": STATE * found.get("trained", 1.0) + found["memory"]}
        if "step_time" in found:
            longer = 1.0
            if not item.cell.method.posthoc:  # replay takes more steps
                own, usual = samples(item.cell), samples(full_ft)
                longer = own / usual if own and usual else 1.0
            line["time"] = found["step_time"] * longer
        lines.append(line)
    return pd.DataFrame(lines, columns=["model", "row", "time", "memory"])


def _middles(survey: Survey, plan: Sequence[Planned]) -> Iterator[tuple[ModelSpec, Row, Planned, TunedCell]]:
    """Yield for each model and row its finished cell of the middle strength on the first target that has one."""
    planned = {item.id: item for item in plan if item.done}
    targets = [cell.target for cell in survey.base.cells if is_tuned(cell)]
    for model in survey.base.models:
        usual = {cell.target: cell for cell in survey.base.cells
                 if is_tuned(cell) and cell.model.id == model.id and cell.method.id == REFERENCE}
        for row in survey.rows:
            key, grid = row.key or RATE, survey.curves[model.id, row.id].grid
            values = list(dict.fromkeys(entry.settings[key] for entry in grid))
            middle = [entry.cell for entry in grid if entry.settings[key] == values[len(values) // 2]]
            done = [planned[name] for cell in middle if (name := cell_id(cell)) in planned]
            if done:
                first = min(done, key=lambda item: targets.index(item.cell.target or ""))
                yield model, row, first, usual[first.cell.target or ""]
