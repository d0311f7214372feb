"""Grids to ordered cells, each once, with what they depend on, and what is left of them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.config.request import Request, request
from benchmark.core.errors import UserError
from benchmark.core.progress import Clock, Lines, clock
from benchmark.planning import plan as planning
from benchmark.planning.cost import Costs
from benchmark.running.runner import Schedule
from benchmark.running.worker import Failure
from benchmark.spec import cell_id
from benchmark.store.cells import Store
from tests.benchmark import fakes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    return fakes.world_in(tmp_path, monkeypatch)


def names(asked: Request) -> list[str]:
    return [cell_id(cell).rpartition("-")[0] for cell, _ in planning.expand(asked.cells, asked.full_ft)]


def test_table_5_is_thirty_cells():
    asked = request(["table=table5", "models=vila_pocket,llava_pocket"])
    assert len(names(asked)) == len(set(names(asked))) == 30
    trained = [cell for cell, needs in planning.expand(asked.cells, asked.full_ft) if cell.train and not needs]
    assert len(trained) == 20


def test_a_dependency_comes_first_and_once():
    asked = request(["methods=dare,spider,tailor,full_ft", "model=vila_pocket", "dataset=coco"])
    order = [name.split("-")[2] for name in names(asked)]
    assert order == ["full_ft", "dare", "spider", "tailor"]
    pairs = planning.expand(asked.cells, asked.full_ft)
    source = cell_id(pairs[0][0])
    assert [needs for _, needs in pairs] == [(), (source,), (), (source,)]


def test_a_dependency_has_the_settings_of_the_cell_that_needs_it():
    asked = request(["method=dare", "model=vila_pocket", "dataset=coco", "train.epochs=7", "seed=3", "method.keep=0.5"])
    (full, _), (dare, _) = planning.expand(asked.cells, asked.full_ft)
    assert (full.train, full.seed, full.target, full.method.params) == (dare.train, 3, "coco", {})


def test_a_merge_over_seeds_needs_the_full_ft_cell_of_each_seed():
    """Soups of different seeds share no training, and cells of the grid are used again."""
    asked = request(["methods=full_ft,soup,ties,wise_ft", "model=vila_pocket", "dataset=coco", "seeds=0,1"])
    pairs = planning.expand(asked.cells, asked.full_ft)
    tuned = {cell_id(cell): cell.seed for cell, needs in pairs if not needs}
    assert sorted(tuned.values()) == [0, 1, 2, 3, 4, 5]
    order = [cell_id(cell) for cell, _ in pairs]
    for cell, needs in pairs:
        assert all(order.index(name) < order.index(cell_id(cell)) for name in needs)
        if cell.method.id in ("soup", "ties"):
            assert [tuned[name] for name in needs] == [3 * cell.seed + i for i in range(3)]
        elif needs:
            assert [tuned[name] for name in needs] == [cell.seed]
    longer = request(["method=soup", "method.members=2", "model=vila_pocket", "dataset=coco", "train.epochs=7"])
    (one, _), (two, _), (soup, needs) = planning.expand(longer.cells, longer.full_ft)
    assert (one.seed, two.seed) == (0, 1) and one.train == two.train == soup.train and soup.train.epochs == 7
    assert one.method.params == {} and needs == (cell_id(one), cell_id(two))


@pytest.mark.parametrize("method", ["soup", "ties"])
def test_a_merge_of_one_seed_is_refused_before_anything_is_computed(method, world, capsys):
    assert cli.main(["run", *world.overrides(f"methods={method}", "method.members=1")]) == 2
    error = capsys.readouterr().err
    assert "members=1: a merge over seeds needs at least two Full FT runs" in error and error.count("error:") == 1
    assert not world.results.exists() or not list(world.results.glob("cells/*"))


def test_an_untuned_model_asked_for_twice_is_one_cell_with_all_datasets():
    first = request(["method=zero_shot", "model=vila_pocket", "dataset=coco"])
    second = request(["method=zero_shot", "model=vila_pocket", "dataset=iconqa"])
    ((cell, _),) = planning.expand([*first.cells, *second.cells], first.full_ft)
    assert {dataset.id for dataset in cell.targets} == {"coco", "iconqa"}
    assert len({dataset.id for dataset in cell.datasets}) == len(cell.datasets)


def test_a_plan_says_what_is_left_and_where_its_numbers_come_from(world):
    asked = request(world.overrides("methods=zero_shot,full_ft,dare"))
    store = Store(asked.results)
    plan = planning.make(asked, store)
    text = planning.describe(plan, asked, Costs(store, asked.profile))
    assert [item.missing[0] for item in plan] == ["generate/okvqa", "train", "train"]
    assert "from Full FT, generate 5, score" in text and "a guess until a cell is measured" in text
    assert "3 cells, 0 done, 3 to run" in text and not asked.results.exists()
    assert fakes.calls() == []


def test_a_plan_without_data_says_so(world):
    asked = request(world.overrides("methods=full_ft", f"data_root={world.root}/nowhere"))
    plan = planning.make(asked, Store(asked.results))
    assert plan[0].keys is None and plan[0].missing[0] == "train" and plan[0].missing[-1] == "summary"
    costs = Costs(Store(asked.results), asked.profile)
    text = planning.describe(plan, asked, costs)
    assert "data do not exist yet" in text and "`data draw profile=pocket data_root=DIR` fills" in text
    ours = asked.of(dataclasses.replace(cell, data_root="data/pocket") for cell in asked.cells)
    assert "(data/pocket). `run` makes them first" in planning.describe(plan, ours, costs)


# -- cost ---------------------------------------------------------------------------------------------------------


def test_costs_are_measured_where_they_can_be(tmp_path):
    asked = request(["methods=full_ft,dare", "models=vila_pocket,llava_pocket", "dataset=coco"])
    store = Store(tmp_path)
    by_name = {(cell.model.id, cell.method.id): cell for cell in asked.cells}
    full, dare = by_name["vila_pocket", "full_ft"], by_name["vila_pocket", "dare"]
    guesses = asked.profile.seconds
    costs = Costs(store, asked.profile)
    assert not costs.measured
    assert costs.seconds(full, ["train", "generate/coco"]) == guesses["train"] + guesses["generate"]
    assert costs.seconds(dare, ["train"]) == guesses["posthoc"]
    for cell, seconds in ((full, 100.0), (dare, 1.0)):
        store.begin(cell)
        store.start_stage(cell, "train", "key")
        (store.folder(cell) / "delta.safetensors").touch()
        store.finish_stage(cell, "train", "key", seconds)
    costs = Costs(store, asked.profile)
    assert costs.measured
    assert costs.seconds(full, ["train"]) == 100 and costs.seconds(dare, ["train"]) == 1
    assert costs.seconds(by_name["llava_pocket", "full_ft"], ["train"]) == 100  # another model is the next best
    assert costs.seconds(full, ["generate/coco"]) == guesses["generate"]
    assert costs.megabytes([["train"], [], ["summary"]]) == 2 * asked.profile.megabytes


def test_training_costs_in_proportion_to_rows_and_epochs(tmp_path):
    words = ["method=full_ft", "model=vila_pocket", "dataset=coco", "train.limit=128,512", "train.epochs=5,10"]
    asked = request(words)
    cells = {(cell.train.limit, cell.train.epochs): cell for cell in asked.cells}
    store = Store(tmp_path)

    def seconds():
        costs = Costs(store, asked.profile)
        return {key: costs.seconds(cell, ["train"]) for key, cell in cells.items()}

    guess = asked.profile.seconds["train"]
    assert seconds() == {(128, 5): guess / 4, (512, 5): guess, (128, 10): guess / 2, (512, 10): guess * 2}
    measured = cells[128, 10]
    store.begin(measured)
    store.start_stage(measured, "train", "key")
    (store.folder(measured) / "delta.safetensors").touch()
    store.finish_stage(measured, "train", "key", 20.0)
    assert seconds() == {(128, 5): 10.0, (512, 5): 40.0, (128, 10): 20.0, (512, 10): 80.0}


def test_a_training_that_was_measured_without_its_samples_predicts_no_other(tmp_path):
    """Folders of an older version do not say how many samples a cell had."""
    asked = request(["method=full_ft", "model=vila_pocket", "dataset=coco"])
    (cell,), store = asked.cells, Store(tmp_path)
    store.begin(cell)
    store.start_stage(cell, "train", "key")
    (store.folder(cell) / "delta.safetensors").touch()
    store.finish_stage(cell, "train", "key", 100.0)
    path = store.folder(cell) / "status.json"
    status = json.loads(path.read_text())
    del status["about"]["samples"]
    path.write_text(json.dumps(status))
    assert Costs(store, asked.profile).seconds(cell, ["train"]) == asked.profile.seconds["train"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1 h 30 min")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text or (seconds == 5399 and clock(seconds) == "1 h 30 min")


def test_time_left_follows_the_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmark.core.progress.time.monotonic", lambda: now[0])
    watch = Clock()
    watch.begin({"a": {"train": 10.0}, "b": {"train": 10.0}, "c": {"train": 20.0}})
    assert watch.left == 40
    watch.start("a")
    now[0] = 20.0
    watch.stop("a")
    assert watch.left == 60  # everything takes twice as long as expected
    watch.start("b")
    now[0] = 25.0
    assert watch.left == 55
    assert Clock(workers=2).left == 0


def test_lines_are_one_per_event(capsys):
    show = Lines()
    show.begin({"a": {"train": 5.0}, "b": {"train": 5.0}})
    for name in "ab":
        show.cell(name)
        show.step(name, "train", 1, 10, "loss 2.0")  # too often for a log
        show.finished(name, f"done {name}")
    show.end()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "left] 1/2 a: done a" in lines[0] and "] 2/2 b: done b" in lines[1] and "left" not in lines[1]


# -- schedule -----------------------------------------------------------------------------------------------------


def schedule(*overrides: str) -> Schedule:
    asked = request(list(overrides))
    pairs = planning.expand(asked.cells, asked.full_ft)
    return Schedule([planning.Planned(cell, cell_id(cell), needs, None, ("train",)) for cell, needs in pairs], set())


def test_a_posthoc_cell_waits_for_its_full_ft_cell():
    queue = schedule("methods=dare,spider", "model=vila_pocket", "dataset=coco")
    full, spider = queue.take(), queue.take()
    assert (full.cell.method.id, spider.cell.method.id, queue.take()) == ("full_ft", "spider", None)
    queue.settle(full, "done")
    assert queue.take().cell.method.id == "dare"


def test_a_merge_over_seeds_waits_for_all_of_them_and_fails_with_any():
    queue = schedule("methods=soup", "model=vila_pocket", "dataset=coco")
    one, two, three = (queue.take() for _ in range(3))
    assert [item.cell.seed for item in (one, two, three)] == [0, 1, 2]
    for item in (one, two):
        queue.settle(item, "done")
        assert queue.take() is None
    gone = queue.settle(three, Failure("broken", user=False))
    assert [item.cell.method.id for item, _ in gone] == ["full_ft", "soup"] and not queue.waiting
    queue = schedule("methods=soup", "model=vila_pocket", "dataset=coco")
    for _ in range(3):
        queue.settle(queue.take(), "done")
    assert queue.take().cell.method.id == "soup"


def test_a_failure_passes_on_to_cells_that_need_what_needed_it():
    queue = schedule("methods=full_ft,dare", "model=vila_pocket", "dataset=coco")
    full, dare = queue.waiting
    shown = dataclasses.replace(full, id="shown", needs=(full.id,))
    merged = dataclasses.replace(dare, id="merged", needs=("shown",))
    queue = Schedule([full, dare, shown, merged], set())
    gone = queue.settle(queue.take(), Failure("broken", user=False))
    assert [item.id for item, _ in gone] == [full.id, dare.id, "shown", "merged"] and not queue.waiting
    assert gone[-1][1].message == f"it needs the weights of {full.id}, which failed"


@pytest.mark.slow
def test_a_training_that_another_cell_has_is_not_planned_again(world):
    asked = request(world.overrides("methods=full_ft,dare", "eval.examples=1"))
    plain = request(world.overrides("methods=full_ft,dare"))
    both = dataclasses.replace(plain, grid=plain.grid + asked.grid)
    full, dare, shown, merged = planning.make(both, Store(world.results))
    assert full.missing[0] == dare.missing[0] == merged.missing[0] == "train" and "train" not in shown.missing
    assert shown.needs == (full.id,) and merged.needs == (shown.id,)
    assert cli.main(["run", *world.overrides("methods=full_ft,dare")]) == 0
    shown, merged = planning.make(asked, Store(world.results))
    assert "train" not in (*shown.missing, *merged.missing) and shown.needs == () and not shown.done


def test_a_worker_keeps_its_model_if_it_can():
    queue = schedule("methods=full_ft,spider", "models=vila_pocket,llava_pocket", "dataset=coco")
    assert queue.take("llava_pocket").cell.model.id == "llava_pocket"
    assert queue.take().cell.model.id == "vila_pocket"
    assert queue.take("no such model").cell.model.id == "vila_pocket"


def test_a_failure_takes_what_depends_on_it_along():
    queue = schedule("methods=full_ft,dare,spider", "models=vila_pocket,llava_pocket", "dataset=coco")
    gone = queue.settle(queue.take(), Failure("broken", user=False))
    assert [item.cell.method.id for item, _ in gone] == ["full_ft", "dare"]
    gone = queue.settle(queue.take("llava_pocket"), Failure("no such file", user=True, model=True))
    assert {item.cell.model.id for item, _ in gone} == {"llava_pocket"} and len(gone) == 3
    assert [item.cell.method.id for item in queue.waiting] == ["spider"]
    assert len(queue.failures) == 5


def test_results_of_another_schema_are_not_planned_over(world, capsys):
    world.results.mkdir(exist_ok=True)
    (world.results / "schema").write_text("99")
    assert cli.main(["plan", *world.overrides("methods=full_ft")]) == 2
    assert "schema version 99" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["pocket", "paper"])
def test_a_plan_advises_a_data_command_that_the_profile_accepts(profile, monkeypatch, tmp_path):
    said = planning.advice(request([f"profile={profile}"], grid=False).profile)
    words = re.search(r"`(data \w+ profile=\w+) data_root=DIR`", said)
    done = []
    monkeypatch.setattr("benchmark.running.runner.draw", lambda *_: done.append("draw"))
    monkeypatch.setattr("benchmark.data.prepare.main", lambda *_: done.append("prepare") or 0)
    assert cli.main([*words[1].split(), f"data_root={tmp_path}"]) == 0 and len(done) == 1


@pytest.mark.parametrize("key", planning.NAMELESS)
def test_one_folder_holds_no_two_cells_of_one_name(key):
    """Settings that compute a cell otherwise and do not name it: two values of one would redo it for ever."""
    cell = request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]
    head, _, tail = key.partition(".")
    value = dataclasses.replace(getattr(cell, head), **{tail: 7}) if tail else "other"
    other = dataclasses.replace(cell, **{head: value})
    assert cell_id(cell) == cell_id(other)
    with pytest.raises(UserError, match=f"{key}=.*: both cells have the name"):
        planning.expand([cell, other], cell.method)
    assert len(planning.expand([cell, cell], cell.method)) == 1
