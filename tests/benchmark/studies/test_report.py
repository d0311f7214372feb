"""The report: whole from stand-in cells, escaped, without network, and used in a real browser where there is one."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from benchmark import cli
from benchmark.config.request import request
from benchmark.planning import plan
from benchmark.reporting import outputs
from benchmark.reporting.claims import Verdict
from benchmark.store import code_version
from benchmark.store.cells import Store
from benchmark.studies import report
from benchmark.studies.report_groups import Group, ScoredCell
from benchmark.studies.report_page import Content, page, script_json
from tests.benchmark import browser, fakes
from tests.benchmark.table_rows import rows

LOAD = report.load
EVIL = "<script>window.hacked = 1</script></script><img src=x onerror='window.hacked=1'>\"&$x$ {{DATA}}"


class Checker(HTMLParser):
    """Notes tags, ids, and whether every element is closed in order."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.faults == [] and checker.open == []
    ids = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    return checker


def runs(count: int = 6) -> dict:
    """Return answers of an untuned and two tuned models to a few items, half of them with an image."""
    items = [
        {"id": f"i{k}", "image": 0 if k % 2 else None, "prompt": f"{EVIL} {k}", "references": [EVIL, "b"]}
        for k in range(count)
    ]
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, format="PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def run(method: str, target: str | None, scores: list[float]) -> dict:
        return {
            "model": "m", "model_name": "Model", "target": target, "target_name": "Coco", "method": method,
            "method_name": method.upper(), "untuned": method == "zero_shot", "answers": {
                name: [[f"{method} {EVIL}", score] for score in values]
                for name, values in (("gqa", scores), ("coco", [0.3 + score for score in scores])) if scores
            },
        }

    return {
        "images": [uri], "right": 0.5, "groups": [{
            "name": EVIL, "why": "", "datasets": {
                "gqa": {"name": "GQA", "role": "upstream", "judged": True, "items": items},
                "coco": {"name": "COCO", "role": "target", "judged": False, "items": items},
            }, "runs": [
                run("zero_shot", None, [1, 1, 1, 0, 0, 0]), run("full_ft", "coco", [0, 0, 1, 1, 0, 0]),
                run("spider", "coco", [1, 1, 1, 0, 0, 1]), run("dare", "coco", []),
            ],
        }],
    }


def content(**changes) -> Content:
    from benchmark.reporting import tables
    from tests.benchmark.table_rows import UPSTREAM

    table = tables.build(EVIL, rows(methods=("zero_shot", "full_ft", "spider"), models=("llava",), n=20), UPSTREAM,
                         notes=[EVIL], draws=50)
    cell = request(["models=llava_pocket", "methods=full_ft", "targets=coco"]).cells[0]
    scores = {name: {"value": 1.0, "low": 0.5, "high": 1.5} for name in ("gqa", "A_S", "A_T", "H", "O")}
    cell = replace(cell, model=replace(cell.model, name=EVIL))
    entry = ScoredCell(Path(EVIL.replace("/", "")), cell, "coco", {EVIL: EVIL}, scores, older=True)
    fields = {
        "title": EVIL, "lead": [EVIL], "tables": [table], "main": 1, "facts": [(EVIL, EVIL)],
        "groups": [Group(EVIL, EVIL, (entry,), (EVIL,))], "upstream": {"gqa": EVIL},
        "figures": [(EVIL, b"png")], "predictions": runs(),
        "verdicts": [Verdict(EVIL, EVIL, EVIL, "not shown", EVIL, ((EVIL, 1.0, -1.0, 3.0),))],
        "cells": [{"cell": EVIL, "x": 2.0}, {"cell": "b", "x": None}, {"cell": "a", "x": 10.0}],
        "provenance": [(EVIL, 3)],
    }
    return Content(**{**fields, **changes})


def test_everything_is_escaped_and_nothing_comes_from_outside():
    text = page(content())
    checker = check(text)
    assert EVIL not in text
    numbers = [values["data-value"] for tag, values in checker.tags if tag == "td" and "data-value" in values]
    assert len(numbers) > 50 and all(float(text) == float(text) for text in numbers if text != "not shown")
    assert [tag for tag, _ in checker.tags].count("script") == 2
    for tag, attributes in checker.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href") or str(value).startswith(("data:", "#")), (tag, value)
    policy = next(a["content"] for t, a in checker.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "connect" not in policy


def test_json_in_a_script_reads_back_and_holds_no_markup():
    value = {"a": [EVIL, "</script>", "<!--", "\u2028"]}
    text = script_json(value)
    assert json.loads(text) == value and not set("<>&\u2028") & set(text)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    made = fakes.world_in(tmp_path, monkeypatch)
    monkeypatch.setattr(report, "load", fakes.load_records)
    return made


@pytest.mark.slow
def test_a_report_of_finished_cells(world, capsys):
    assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft,spider"), "--cells-only"]) == 0
    (world.results / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(world.results / "figures" / "fig4_x.png")
    own = [f"results={world.results}", f"data_root={world.data}", f"model.checkpoint={world.checkpoint}"]
    capsys.readouterr()
    assert cli.main(["report", "models=llava_pocket", *own]) == 0
    text = (world.results / "report.html").read_text()
    check(text)
    assert "Fine-tuning forgets" in text and "not run" in text and "Figure fig4_x" in text
    assert "score by method, on one scale from 0; bands are 95 % intervals. x" in html.unescape(text)
    assert "commit " in text and text.count('class="sortable') >= 4
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [group["name"] for group in data["groups"]] == ["Tables 5 and 6"]
    data = data["groups"][0]
    assert {run["method"] for run in data["runs"]} == {"zero_shot", "full_ft", "spider"}
    assert len(data["datasets"]["gqa"]["items"]) == fakes.ITEMS
    again = text
    assert cli.main(["report", "models=llava_pocket", *own]) == 0
    assert (world.results / "report.html").read_text() == again


@pytest.mark.slow
def test_a_report_of_some_methods_gives_each_its_parameters(world, capsys):
    assert cli.main(["run", *world.overrides("methods=full_ft,spider", "method.momentum=0.9"), "--cells-only"]) == 0
    own = [f"results={world.results}", f"data_root={world.data}", f"model.checkpoint={world.checkpoint}"]
    assert cli.main(["report", "models=llava_pocket", "methods=full_ft,spider", "method.momentum=0.9", *own]) == 0
    assert "<dt>Finished cells</dt><dd>2</dd>" in (world.results / "report.html").read_text()
    capsys.readouterr()
    assert cli.main(["report", "models=llava_pocket", "methods=full_ft,spider", "method.momentun=0.9", *own]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'method.momentum'?" in error and error.count("method.momentun") == 1


@pytest.mark.slow
def test_a_setting_of_the_tables_leaves_the_sweeps_their_axis_and_two_settings_are_refused(world, capsys):
    assert cli.main(["run", *world.overrides("methods=full_ft,spider", "train.epochs=6,7")[1:], "--cells-only"]) == 0
    own = [f"results={world.results}", f"data_root={world.data}", f"model.checkpoint={world.checkpoint}"]
    assert cli.main(["report", "models=llava_pocket", "train.epochs=7", *own]) == 0
    assert "7 epochs, batch" in (world.results / "report.html").read_text()
    capsys.readouterr()
    assert cli.main(["report", "models=llava_pocket", "train.epochs=6,7", *own]) == 2
    assert "A table or a figure shows one setting, but a key has several values" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_of_a_published_folder_needs_no_stage_records_or_data(world, monkeypatch):
    monkeypatch.setattr(report, "load", LOAD)
    assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft,spider"), "--cells-only"]) == 0
    for path in [*world.results.glob("cells/*/status.json"), *world.results.glob("cells/*/answers/*")]:
        path.unlink()
    assert cli.main(["report", "models=llava_pocket", f"results={world.results}", "data_root=/nowhere"]) == 0
    text = (world.results / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["groups"][0]
    assert "SPIDER" in text and data["runs"] == [] and data["why"]


@pytest.mark.slow
def test_published_cells_of_older_code_are_shown_and_marked(world, monkeypatch):
    monkeypatch.setattr(report, "load", LOAD)
    assert cli.main(["run", *world.overrides("methods=full_ft,spider"), "--cells-only"]) == 0
    for path in world.results.glob("cells/*/status.json"):
        path.unlink()
    arguments = ["report", "models=llava_pocket", f"results={world.results}", "data_root=/nowhere"]
    assert cli.main(arguments) == 0
    assert "†" not in (world.results / "report.html").read_text()
    monkeypatch.setitem(code_version._read()["score"], "version", 0)
    assert cli.main(arguments) == 0
    text = (world.results / "report.html").read_text()
    assert "<td>Full FT †</td>" in text and "<td>SPIDER †</td>" in text
    assert "† older code: the code of score has changed" in text and "2 of the cells are of older code" in text


def test_a_cell_of_a_run_that_older_code_made_is_named_in_the_table(world, monkeypatch):
    """Its number is not shown as today's; the note says that there was one, and what to do."""
    assert cli.main(["run", *world.overrides("methods=full_ft"), "--cells-only"]) == 0
    monkeypatch.setitem(code_version._read()["score"], "version", 0)
    asked = request(world.overrides("methods=full_ft"))
    store = Store(asked.results)
    table = outputs.build_table(asked, plan.make(asked, store), store)
    assert table.frame["value"].isna().all()
    assert any("older code, settings or data made it, run it again" in note for note in table.texts())


def test_without_finished_cells_there_is_no_report(tmp_path, capsys):
    assert cli.main(["report", f"results={tmp_path}"]) == 2
    assert "no finished cells" in capsys.readouterr().err and not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_every_complete_seed_is_taken_and_what_is_left_out_is_said(world, capsys):
    own = [f"results={world.results}", f"data_root={world.data}", f"model.checkpoint={world.checkpoint}"]
    for methods, seeds in (("full_ft,spider", "0,1"), ("full_ft", "2")):
        run = world.overrides(f"methods={methods}", f"seeds={seeds}")
        assert cli.main(["run", *run, "--cells-only"]) == 0
    assert cli.main(["report", "models=llava_pocket", *own]) == 0
    text = (world.results / "report.html").read_text()
    # Of seed 2 only Full FT is there: it is under way, and no row mixes it in.
    assert "<dt>Training seeds</dt><dd>0, 1, 2</dd>" in text and "Not on this page" not in text
    assert "Other seeds</a>: 1 cell<" in text
    assert "Training seeds: 0, 1; values are means" in text and "seed 2 left out" not in text
    assert cli.main(["report", "models=llava_pocket", *own, "seeds=2"]) == 0
    text = (world.results / "report.html").read_text()
    assert "<dt>Training seeds</dt><dd>2</dd>" in text and "Not on this page: 4 finished cells" in text


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    binary = browser.find()
    if binary is None:
        pytest.skip("no Chromium that starts: install one or set SPIDERBENCH_BROWSER to it")
    path = tmp_path / "report.html"
    path.write_text(page(content()))
    with browser.Browser(binary) as tab:
        tab.open(path)
        assert tab.run("document.title").startswith("<script>") and tab.run("window.hacked") is None
        # All is folded: the page begins with what a reader wants first.
        assert tab.run("document.querySelectorAll('details[open]').length") == 0
        tab.run("location.hash = '#cells-head'; 0")
        assert tab.run("document.getElementById('cells-part').open")
        tab.run("document.querySelectorAll('details.part').forEach(part => part.open = true)")
        column = "[...document.querySelectorAll('#cells tbody tr')].map(r => r.cells[0].textContent[0]).join('')"
        sorted_by = "document.querySelectorAll('#cells th')[1].ariaSort"
        # Sorting with the keyboard: numbers as numbers, empty cells last in both directions, then as it was.
        before = tab.run(column)
        tab.run("document.querySelectorAll('#cells th button')[1].focus()")
        for expected, way in (("<ab", "ascending"), ("a<b", "descending"), (before, "none")):
            tab.press("Enter", 13)
            assert tab.run(column) == expected and tab.run(sorted_by) == way
        # A table of scores: by H, from the lowest.
        place = "[...document.querySelectorAll('#table0-0 th')].findIndex(h => h.textContent === 'H')"
        tab.run(f"document.querySelectorAll('#table0-0 th button')[{place}].click()")
        rows = "[...document.querySelectorAll('#table0-0 tbody tr')]"
        values = tab.run(f"{rows}.map(row => +row.cells[{place}].dataset.value)")
        assert values == sorted(values) and len(set(values)) == 3
        # Filters and steps through the answers.
        place, card = "document.getElementById('place').textContent", "document.getElementById('card').textContent"
        choose = "s = document.getElementById('{}'); s.value = '{}'; s.dispatchEvent(new Event('change'))"
        assert tab.run(place) == "1 of 6" and EVIL in tab.run(card)
        assert tab.run("getComputedStyle(document.getElementById('groups')).display") == "none"
        tab.run(choose.format("filter", "lost"))
        assert tab.run(place) == "1 of 2"
        assert tab.run("document.querySelector('#card .judged').cells[0].textContent") == "FULL_FT"
        tab.run("document.getElementById('card').focus()")
        tab.press("ArrowRight", 39)
        tab.press("ArrowRight", 39)
        assert tab.run(place) == "2 of 2" and " 1" in tab.run(card)
        tab.run("document.getElementById('previous').click()")
        assert tab.run(place) == "1 of 2"
        tab.run(choose.format("method", "spider"))
        assert tab.run(place) == "no item" and "No item passes" in tab.run(card)
        tab.run(choose.format("filter", "won"))
        assert tab.run(place) == "1 of 1"
        # A method that was not run on a dataset is no filter that found nothing.
        tab.run(choose.format("method", "dare"))
        assert tab.run(place) == "no item" and tab.run(card) == "DARE was not run on GQA."
        tab.run(choose.format("filter", "all"))
        assert "DARE was not run on GQA." in tab.run(card) and tab.run(place) == "1 of 6"
        tab.run("document.getElementById('next').click()")
        assert tab.run("document.querySelectorAll('#card img').length") == 1
        # Captions have a value and no tick.
        ticks = "document.querySelectorAll('#card .right, #card .wrong').length"
        assert tab.run(ticks) == 3
        tab.run(choose.format("dataset", "coco"))
        assert tab.run(ticks) == 0 and "CIDEr" in tab.run(card) and "130.0" in tab.run(card)
        assert tab.run("document.getElementById('filter').options[1].text") == "lower score than before"
        # On a phone nothing is wider than the screen, and a line of diagnostics has names and values.
        phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        tab.send("Emulation.setDeviceMetricsOverride", **phone)
        assert tab.run("document.documentElement.scrollWidth") == 390
        cell = "document.querySelectorAll('#cells td.n')[0]"
        assert tab.run(f"getComputedStyle({cell}, '::before').content") == '"x"'
        assert tab.run(f"{cell}.textContent") == "2"
        tab.send("Emulation.clearDeviceMetricsOverride")
        # On paper the notes are open, and closed again afterwards.
        tab.run("document.getElementById('cells-part').open = false")
        assert tab.run("document.querySelectorAll('details.notes[open]').length") == 0
        tab.run("dispatchEvent(new Event('beforeprint'))")
        assert tab.run("document.getElementById('cells-part').open")
        assert tab.run("document.querySelectorAll('details.notes[open]').length") == 1
        tab.run("dispatchEvent(new Event('afterprint'))")
        assert tab.run("document.querySelectorAll('details.notes[open], #cells-part[open]').length") == 0
        # Text of models stayed text, and nothing was asked for beside the file.
        assert tab.run("window.hacked") is None
        assert tab.requests() == [path.resolve().as_uri()]
        # A picture that is no picture (here b"png") is no complaint of ours.
        assert [text for text in tab.complaints() if "ERR_" not in text] == []
