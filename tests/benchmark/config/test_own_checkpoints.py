"""A user's own checkpoints as rows: how they are written, what they are evaluated on, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.spec import cell_id
from tests.benchmark import fakes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    return fakes.world_in(tmp_path, monkeypatch)


def own(world: fakes.World, name: str, content: str = "mine") -> Path:
    folder = world.root / name
    folder.mkdir()
    (folder / "weights").write_text(content)
    return folder


@pytest.mark.slow
def test_a_checkpoint_is_a_row_without_training(world, capsys):
    path = own(world, "my, llava")
    arguments = world.overrides("methods=full_ft", f"checkpoints=mine:{path}")
    assert cli.main(["run", *arguments]) == 0
    assert [line.split()[2] for line in fakes.calls() if line.startswith("train")] == ["full_ft"]
    table = next(world.results.glob("tables/table6*.md")).read_text()
    assert "| mine |" in table and "| Full FT |" in table
    assert {name for name in world.cells()} == {"llava_pocket-iconqa-full_ft-s0", "llava_pocket-checkpoint.mine"}
    assert "2 cells, 0 done" in capsys.readouterr().out
    world.forget_calls()
    assert cli.main(["run", *arguments]) == 0 and fakes.calls() == []
    (path / "weights").write_text("trained longer")  # the same path, other weights
    assert cli.main(["run", *arguments]) == 0
    assert sum(line.startswith("generate") for line in fakes.calls()) == 5


@pytest.mark.slow
def test_a_checkpoint_of_ones_own_has_no_training_seed_in_the_notes(world, capsys):
    path = own(world, "mine")
    assert cli.main(["run", *world.overrides("methods=full_ft", "seeds=1", f"checkpoints=mine:{path}")]) == 0
    notes = next(world.results.glob("tables/table6*.md")).read_text()
    assert "Training seed: 1." in notes and "Training seeds:" not in notes


def test_the_layout_chooses_the_model_and_the_user_can(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "llm").mkdir(parents=True)
    asked = request(["table=table5", f"checkpoints=a:{tmp_path}/a,b:{tmp_path}/b,c@vila_pocket:{tmp_path}/a"])
    found = [cell for cell in asked.cells if cell.method.id.startswith("checkpoint.")]
    assert [(cell.method.id, cell.model.id) for cell in found] == [
        ("checkpoint.a", "llava_pocket"), ("checkpoint.b", "vila_pocket"), ("checkpoint.c", "vila_pocket")
    ]
    for cell in found:
        assert cell.train is None and {dataset.id for dataset in cell.targets} == {"flickr30k", "coco"}
        assert not any(dataset.role == "extra" for dataset in cell.datasets)
    assert len({cell_id(cell) for cell in asked.cells}) == len(asked.cells)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mine", "write NAME:FOLDER"),
        ("mine:{}/nowhere", "is not a folder"),
        ("mine:{0},mine:{0}", "the name 'mine' is used twice"),
        ("mine@vila:{}", "the table has no model 'vila'. Did you mean 'vila_pocket'"),
        ("a b:{}", "write NAME:FOLDER"),
    ],
)
def test_mistakes(value, message, tmp_path):
    with pytest.raises(UserError, match=message.replace("(", "\\(").replace(".", "\\.")):
        request(["table=table5", f"checkpoints={value.format(tmp_path)}"])


def test_a_layout_that_no_single_model_of_the_table_has_is_explained(tmp_path):
    with pytest.raises(UserError, match="has the layout of llava, which 0 models"):
        request(["table=table5", "models=vila_pocket", f"checkpoints=mine:{tmp_path}"])
