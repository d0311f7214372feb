"""Whatever a results folder holds is on the report, under the heading of what it is."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmark import cli
from benchmark.config.own_checkpoints import PREFIX
from benchmark.config.request import request
from benchmark.spec import CellSpec, MethodSpec, cell_id, plain
from benchmark.store.cells import Store
from methods.registry import load_class

INTERVAL = {"value": 61.25, "low": 60.0, "high": 62.5}
ONE = ("models=llava_pocket", "methods=full_ft", "targets=coco", "seeds=0")


def cells(*overrides: str) -> tuple[CellSpec, ...]:
    return request([*ONE, *overrides]).cells


def finish(root: Path, *done: CellSpec) -> list[str]:
    """Write finished cells as a publication has them: cell, scores, items."""
    for cell in done:
        folder = root / "cells" / cell_id(cell)
        (folder / "items").mkdir(parents=True, exist_ok=True)
        targets = [cell.target] if cell.target else [dataset.id for dataset in cell.targets]
        sets = {
            dataset.id: {"metric": dataset.metric, "n": 1, "words_over_3": 0.0, "contains_gold": 0.0, **INTERVAL}
            for dataset in cell.datasets
        }
        averages = {target: dict.fromkeys(("A_S", "A_T", "H", "O"), INTERVAL) for target in targets}
        (folder / "cell.yaml").write_text(yaml.safe_dump(plain(cell)))
        (folder / "scores.json").write_text(json.dumps({"datasets": sets, "averages": averages}))
    return [cell_id(cell) for cell in done]


def report(root: Path, *overrides: str) -> str:
    assert cli.main(["report", f"results={root}", "data_root=/nowhere", *overrides]) == 0
    return (root / "report.html").read_text()


def sections(text: str) -> dict[str, str]:
    """Return heading -> content of the folded tables."""
    part = text[text.index('id="tables-head"') : text.index('id="figures-head"')]
    one = r'<details class="part"[^>]*><summary>(.*?)</summary>(.*?)(?=<details class="part"|\Z)'
    found = re.findall(one, part, re.DOTALL)
    return {re.sub("<[^>]*>.*", "", title, flags=re.S).strip(): body for title, body in found}


def own_checkpoint() -> CellSpec:
    cell = cells("methods=zero_shot")[0]
    return replace(cell, method=MethodSpec(f"{PREFIX}mine", {}))


KINDS = {
    "Own targets": lambda: cells("targets=examples.my_target"),
    "Own methods": lambda: cells("methods=examples.my_method:TopKGradient"),
    "Own checkpoints": lambda: (own_checkpoint(),),
    "Own models": lambda: tuple(replace(one, model=replace(one.model, id="mine")) for one in cells()),
    "Sweep over train.epochs": lambda: cells("train.epochs=6,7"),
    "Sweep over train.batch_size, train.epochs": lambda: cells("train.epochs=6,7", "train.batch_size=32,48"),
    "Other settings: train.batch_size": lambda: cells("train.batch_size=32"),
    "Smoke and limited runs": lambda: request(["table=smoke", "eval.limit=4"]).cells,
    "Profile paper": lambda: request(["profile=paper", *ONE[1:], "models=llava15_7b"]).cells,
}


@pytest.mark.slow
@pytest.mark.parametrize("title", KINDS)
def test_every_kind_of_cell_stands_under_its_own_heading(title, tmp_path):
    names = finish(tmp_path, *KINDS[title]())
    found = sections(report(tmp_path))
    assert list(found) == [title]
    assert all(f">{name}<" in found[title] for name in names) and "61.25" in found[title]


@pytest.mark.slow
def test_a_folder_of_everything_loses_no_cell(tmp_path):
    names = finish(tmp_path, *cells(), *(cell for made in KINDS.values() for cell in made()))
    text = report(tmp_path)
    assert "Not on this page" not in text and len(names) == len(Store(tmp_path).finished())
    # Table 5's cell has no item scores here, which leaves it to the others, under a truthful heading.
    found = "".join(sections(text).values())
    assert [name for name in names if f">{name}<" not in found] == []


@pytest.mark.slow
def test_an_untuned_model_beside_an_own_target_is_no_table_5(tmp_path):
    finish(tmp_path, *cells("targets=examples.my_target", "methods=zero_shot,full_ft"))
    found = sections(report(tmp_path))
    assert list(found) == ["Own targets"] and "Zero-shot" in found["Own targets"]


@pytest.mark.slow
def test_a_sweep_shows_its_values_and_the_default_beside_them(tmp_path):
    finish(tmp_path, *cells("train.epochs=5,6,12"))  # 5 is the default
    found = sections(report(tmp_path))
    body = found["Sweep over train.epochs"]
    rows = re.findall(r'<tr><td(?: class="beside")?>Full FT.*?</tr>', body)
    assert [re.findall(r'data-value="([^"]*)"', row)[0] for row in rows] == ["5.0", "6.0", "12.0"]
    assert 'class="beside"' in rows[0] and "Grey rows stand here for comparison" in body
    assert "<button type=\"button\">train.epochs</button>" in body


@pytest.mark.slow
def test_an_own_method_stands_beside_full_ft_and_imports_no_module(tmp_path, monkeypatch):
    finish(tmp_path, *cells("methods=full_ft,examples.my_method:TopKGradient", "train.epochs=6"))
    def refuse(path: str) -> type:
        assert not path.startswith("examples."), f"imported {path}"
        return load_class(path)

    monkeypatch.setattr("methods.registry.load_class", refuse)
    monkeypatch.delitem(sys.modules, "examples.my_method")
    found = sections(report(tmp_path))
    assert "examples.my_method" not in sys.modules
    body = found["Own methods"]
    assert "TopKGradient" in body and ">Full FT" in body and "All with train.epochs=6." in body


@pytest.mark.slow
def test_limits_are_said_wherever_a_limited_cell_stands(tmp_path):
    finish(tmp_path, *cells("targets=examples.my_target", "train.limit=16", "eval.limit=4"))
    body = sections(report(tmp_path))["Own targets"]
    assert "NOT THE WHOLE PROTOCOL" in body and "All with eval.limit=4, train.limit=16." in body


@pytest.mark.slow
def test_a_selection_leaves_out_what_it_does_not_name_and_says_so(tmp_path):
    finish(tmp_path, *cells("train.epochs=6,7", "models=llava_pocket,vila_pocket"))
    text = report(tmp_path, "models=llava_pocket")
    assert "VILA (pocket)" not in "".join(sections(text).values())
    assert "Not on this page: 2 finished cells that the command leaves out." in text


@pytest.mark.slow
def test_a_damaged_cell_is_named_and_stops_nothing(tmp_path):
    names = finish(tmp_path, *cells("train.epochs=6,7"))
    (tmp_path / "cells" / names[0] / "cell.yaml").write_text("model: [")
    text = report(tmp_path)
    assert f"1 cell that cannot be read ({names[0]})" in text and f">{names[1]}<" in text


@pytest.mark.slow
def test_names_and_settings_of_a_folder_are_escaped(tmp_path):
    evil = "<img src=x>"
    cell = cells()[0]
    method = MethodSpec(f"mine:{evil}", {"share": evil})
    made = replace(cell, method=method, model=replace(cell.model, name=evil), changed=(f"method.share={evil}",))
    finish(tmp_path, replace(made, seed=1))
    other = replace(made, method=MethodSpec(method.id, {"share": "0.1"}), changed=("method.share=0.1",))
    finish(tmp_path, replace(other, seed=2))
    text = report(tmp_path)
    assert evil not in text and "&lt;img src=x&gt;" in sections(text)["Own methods"]
