"""What the survey's rows cost: one cell per model and row, measured once, in units that compare all rows."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from benchmark import cli
from benchmark.planning import plan as planning
from benchmark.running import method_cost
from benchmark.store.cell_measures import FOOTPRINT
from benchmark.store.cells import Store
from benchmark.studies import named_figures, row_costs, survey
from tests.benchmark import fakes

ROWS = "methods=full_ft,spider,lora,replay_source,wise_ft"
NUMBERS = {  # of method_cost: an adapter of a tenth of the weights, kept beside them
    "spider": {"memory": 1.5, "peak": 2.0, "step_time": 1.1, "trained": 1.0},
    "lora": {"memory": 0.1, "peak": 0.2, "step_time": 0.9, "trained": 0.1},
    "full_ft": {"memory": 0.0, "peak": 0.0, "step_time": 1.0},  # as older versions wrote it
    "wise_ft": {"memory": 0.0, "peak": 1.0, "step_time": 1.2},
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A survey that ran on stand-ins, with the measuring replaced: (survey, plan, store, measured cells)."""
    monkeypatch = pytest.MonkeyPatch()
    world, measured = fakes.world_in(tmp_path_factory.mktemp("survey"), monkeypatch), []

    def measure(full_ft, items, planned, store, worker):
        for item in items:
            assert (full_ft.method.id, full_ft.target, full_ft.model.id) == ("full_ft", "iconqa", item.cell.model.id)
            measured.append(item.cell)
            content = NUMBERS[item.cell.method.id] | {"code": method_cost._code(item.cell)}
            (store.folder(item.cell) / FOOTPRINT).write_text(json.dumps(content))

    monkeypatch.setattr(method_cost, "measure_beside", measure)
    given = [item for item in world.overrides("targets=iconqa,scienceqa", ROWS)
             if not item.startswith(("table=", "targets=iconqa")) or item == "targets=iconqa,scienceqa"]
    assert cli.main(["figure", "survey", *given]) == 0
    made = survey.ask(named_figures.read("survey"), [item for item in given if not item.startswith("jobs=")])
    store = Store(made.base.results)
    yield made, planning.make(made.everything, store), store, measured
    monkeypatch.undo()


@pytest.mark.slow
def test_a_row_is_measured_once_at_its_middle_strength_on_the_first_target(asked):
    made, plan, store, measured = asked
    assert sorted(cell.method.id for cell in measured) == ["full_ft", "full_ft", "lora", "spider", "wise_ft"]
    assert {cell.target for cell in measured} == {"iconqa"}
    spec = made.base.models[0]
    spider = next(cell for cell in measured if cell.method.id == "spider")
    merge = next(cell for cell in measured if cell.method.id == "wise_ft")
    assert spider.train.learning_rate == spec.learning_rate and merge.method.params["alpha"] == 0.5
    row_costs.measure(made, plan, store)
    assert len(measured) == 5  # nothing twice
    (path,) = store.root.glob("studies/survey_*.csv")
    assert {"time", "memory"} <= set(pd.read_csv(path).columns)
    assert "| time " in path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_time_counts_the_steps_of_replay_and_memory_the_state_of_what_trains(asked):
    made, plan, store, _ = asked
    found = row_costs.recorded(made, plan, store).set_index("row")
    assert found.loc["full_ft"].tolist()[1:] == [1.0, 3.0]
    assert found.loc["spider", "time"] == 1.1 and found.loc["spider", "memory"] == 4.5
    assert found.loc["lora", "time"] == 0.9 and found.loc["lora", "memory"] == pytest.approx(0.4)
    assert found.loc["wise_ft", "time"] == 1.2 and found.loc["wise_ft", "memory"] == 3
    # A quarter of each batch is replayed, so the target's rows take four thirds of the steps.
    assert sorted({cell.train.replay_share for cell in made.curves["llava_pocket", "replay_source"].cells})[2] == 0.25
    assert found.loc["replay_source", "time"] == pytest.approx(4 / 3, rel=0.01)


@pytest.mark.slow
def test_a_merge_whose_sources_have_no_weights_here_is_left_out(asked):
    made, plan, store, measured = asked
    for item in plan:  # the last test here: the results are of no more use after it
        (store.folder(item.cell) / FOOTPRINT).unlink(missing_ok=True)
        if item.cell.method.id == "full_ft":
            (store.folder(item.cell) / "delta.safetensors").unlink()
    measured.clear()
    row_costs.measure(made, plan, store)
    assert "wise_ft" not in [cell.method.id for cell in measured] and "spider" in [cell.method.id for cell in measured]
    assert "wise_ft" not in set(row_costs.recorded(made, plan, store)["row"])
