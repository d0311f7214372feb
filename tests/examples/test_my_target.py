"""The example of an own target: thirty lines, found by its module's name, checked, planned and read like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import examples
from benchmark.cli import main
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.data import check_images, load
from benchmark.spec import cell_id
from benchmark.store.keys import Digests

ROOT = Path(examples.__file__).resolve().parent.parent
NAME = "examples.my_target"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a data root with three training and two test lines, one of them without an image."""
    place = tmp_path / "my_target"
    place.mkdir()
    Image.new("RGB", (8, 8), "red").save(place / "red.png")
    rows = {
        "train": [{"image": "red.png", "prompt": f"What colour, {n}?", "answers": ["red"]} for n in range(3)],
        "test": [
            {"image": "red.png", "prompt": "What colour?", "answers": ["red", "dark red"]},
            {"image": None, "prompt": "Two and two?", "answers": ["4"]},
        ],
    }
    for split, lines in rows.items():
        (place / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_it_has_thirty_lines():
    assert len((ROOT / "examples" / "my_target.py").read_text().splitlines()) <= 30


def test_it_is_read_like_any_other(folder):
    asked = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"])
    spec = asked.cells[0].dataset("my_target")
    assert (spec.role, spec.options, asked.cells[0].target) == ("target", {"reader": NAME}, "my_target")
    first, second = load(spec, folder, "test")
    assert first.prompt == "What colour?\nAnswer the question using a single word or phrase."
    assert first.references == ("red", "dark red") and first.target == "red" and second.image is None
    assert check_images([first, second]) == 1 and len(load(spec, folder, "train", limit=2)) == 2
    digests = Digests(folder / "digests.json")
    before = digests.records(spec, str(folder), "test", None)
    (folder / "my_target" / "test.jsonl").write_text('{"image": null, "prompt": "x", "answers": ["y"]}\n')
    assert Digests(folder / "other.json").records(spec, str(folder), "test", None) != before


def test_it_does_not_stay_for_the_next_request(folder):
    request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"])
    assert "my_target" not in request([], grid=False).datasets
    given = ["method=full_ft", "model=llava_pocket"]
    assert len({cell_id(request([*given, f"targets={name}"]).cells[0]) for name in (NAME, "coco")}) == 2


def test_missing_and_wrong_things(folder, tmp_path):
    spec = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"]).cells[0].dataset("my_target")
    with pytest.raises(UserError, match=r"validation\.jsonl does not exist"):
        load(spec, folder, "validation")
    (folder / "my_target" / "test.jsonl").write_text('{"image": null, "answers": ["y"]}\n')
    with pytest.raises(UserError, match=r"test\.jsonl: line 1 lacks the key 'prompt'"):
        load(spec, folder, "test")
    wrong = {"examples.nothing": "'examples.nothing': ModuleNotFoundError", "benchmark.spec": "needs DATASET"}
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            request(["method=full_ft", "model=llava_pocket", f"targets={name}"])


@pytest.mark.parametrize(("change", "reason"), [
    ({"answers": "cat"}, "answers of line 3 is text 'cat', expected a list"),
    ({"answers": []}, "answers of line 3 has 0 entries, expected at least 1"),
    ({"answers": [3]}, "answers of line 3 holds a number 3, expected strings"),
    ({"answers": None}, "answers of line 3 is null, expected a list"),
    ({"prompt": 3}, "line 3 has prompt=a number 3, expected text"),
    ({"prompt": None}, "line 3 has prompt=null, expected text"),
    ({"image": 3}, "line 3 has image=a number 3, expected text"),
    ({"image": "gone.png"}, r"line 3 names the image .*gone\.png, which does not exist"),
])
def test_a_wrong_row_is_one_message_with_file_line_and_reason(folder, change, reason):
    spec = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"]).cells[0].dataset("my_target")
    rows = [{"image": None, "prompt": "x", "answers": ["y"]} for _ in range(3)]
    rows[2].update(change)
    path = folder / "my_target" / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"{path}: {reason}"):
        load(spec, folder, "test")


def test_a_line_that_is_no_json_object_is_named(folder):
    spec = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"]).cells[0].dataset("my_target")
    for line, reason in {"[1]": "line 2 is a list", '{"image"': "line 2 is truncated or not JSON"}.items():
        (folder / "my_target" / "test.jsonl").write_text(
            json.dumps({"image": None, "prompt": "x", "answers": ["y"]}) + f"\n{line}\n"
        )
        with pytest.raises(UserError, match=reason):
            load(spec, folder, "test")


def test_blank_lines_and_unicode_line_separators_are_no_rows(folder):
    spec = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"]).cells[0].dataset("my_target")
    row = json.dumps({"image": None, "prompt": "a\u2028b\x85c", "answers": ["y"]}, ensure_ascii=False)
    (folder / "my_target" / "test.jsonl").write_text(f"{row}\n{row}\n\n", encoding="utf-8")
    records = load(spec, folder, "test")
    assert [record.item_id for record in records] == ["0", "1"]
    assert records[0].prompt.startswith("a\u2028b\x85c\n")


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """Return a folder with copies of the examples that is on no path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    place = tmp_path / "my code"
    place.mkdir()
    for name, new in {"my_target": "mine_t", "my_method": "mine_m"}.items():
        (place / f"{new}.py").write_text((ROOT / "examples" / f"{name}.py").read_text())
    yield place
    for name in ("mine_t", "mine_m"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_file_works_as_target_and_method_under_a_name_without_the_machines_path(mine, monkeypatch):
    given = [f"methods='{mine}/mine_m.py:TopKGradient'", "model=llava_pocket"]
    cell = request([*given, f"targets='{mine}/mine_t.py'"]).cells[0]
    assert cell.method.id == "mine_m:TopKGradient" and cell.target == "my_target"
    assert cell.dataset("my_target").options["reader"] == "mine_t"
    name = cell_id(cell)
    assert name.startswith("llava_pocket-my_target-mine_m.TopKGradient-s0-")
    monkeypatch.chdir(mine)  # relative, and the top-level module now that it is on the path
    for method, target in (("./mine_m.py:TopKGradient", "./mine_t.py"), ("mine_m:TopKGradient", "mine_t")):
        assert cell_id(request([f"methods={method}", "model=llava_pocket", f"targets={target}"]).cells[0]) == name
    done = subprocess.run(
        [sys.executable, "-c", "import mine_t, mine_m"], cwd=ROOT, capture_output=True, text=True
    )  # as torchrun's processes do
    assert done.returncode == 0, done.stderr


def test_a_file_of_the_repository_is_its_module(mine):
    cells = [request(["method=full_ft", "model=llava_pocket", f"targets={name}"]).cells[0]
             for name in (NAME, str(ROOT / "examples" / "my_target.py"))]
    assert len({cell_id(cell) for cell in cells}) == 1


def test_a_slurm_element_names_the_files(mine):
    from benchmark.running.slurm import _method, _shared, _target

    cell = request([f"methods='{mine}/mine_m.py:TopKGradient'", "model=llava_pocket",
                    f"targets='{mine}/mine_t.py'"]).cells[0]
    again = request([f"methods={_method(cell.method.id)}", "model=llava_pocket",
                     f"targets={_target(cell.dataset('my_target'))}"]).cells[0]
    assert str(mine) in _method(cell.method.id) and str(mine) in _target(cell.dataset("my_target"))
    assert cell_id(again) == cell_id(cell)
    own = [f"method='{mine}/mine_m.py:TopKGradient'", f"target='{mine}/mine_t.py'"]
    overrides = [own[0], "model=llava_pocket", "jobs=2", own[1]]
    asked = request(overrides)
    assert _shared(asked, overrides) == [
        "model=llava_pocket", f"methods={_method(cell.method.id)}", f"targets={_target(cell.dataset('my_target'))}",
        "jobs=1",
    ]
    ours = request(["method=full_ft", "model=llava_pocket", f"targets={NAME}"]).cells[0]
    assert (_method("full_ft"), _target(ours.dataset("my_target"))) == ("full_ft", NAME)


def test_files_that_cannot_be_used_say_why(mine):
    (mine / "json.py").write_text("DATASET = {}")
    (mine / "two words.py").write_text("DATASET = {}")
    (mine / "half.py").write_text("DATASET = {")
    with pytest.raises(UserError, match="Cannot import 'half': SyntaxError"):
        request(["method=full_ft", "model=llava_pocket", f"targets='{mine / 'half.py'}'"])
    for name, reason in {
        "gone.py": "is not a file", "json.py": "`import json` finds .*Rename the file",
        "two words.py": "cannot import a file with this name",
    }.items():
        with pytest.raises(UserError, match=reason):
            request(["method=full_ft", "model=llava_pocket", f"targets='{mine / name}'"])
        with pytest.raises(UserError, match=reason):
            request([f"methods='{mine / name}:X'", "model=llava_pocket", "targets=coco"])
    with pytest.raises(UserError, match="Unknown dataset 'cocoo'. Did you mean 'coco'"):
        request(["method=full_ft", "model=llava_pocket", "targets=cocoo"])


@pytest.mark.slow
def test_a_cell_runs_from_training_to_its_score(folder, tmp_path, capsys):
    """TARGETS=examples.my_target trains, answers and scores; the upstream sets are cut to a few items."""
    from tests.benchmark.models import tiny

    tiny.write("llava", tmp_path / "checkpoint")
    from tests import real_layouts

    with pytest.MonkeyPatch.context() as patch:
        real_layouts.draw_official(folder, patch)
    counts = [f"dataset.{n}.counts.test={real_layouts.COUNTS['test']}" for n in ("okvqa", "textvqa", "gqa", "ocrvqa")]
    short = [f"dataset.{n}.max_new_tokens=2" for n in ("okvqa", "textvqa", "gqa", "ocrvqa")]
    code = main([
        "run", "method=full_ft", "model=llava_pocket", f"targets={NAME}", f"data_root={folder}",
        f"model.checkpoint={tmp_path / 'checkpoint'}", f"results={tmp_path / 'results'}", "model.max_length=480",
        "train.epochs=1", "jobs=1", *counts, *short,
    ])
    assert code == 0, "".join(capsys.readouterr())[-4000:]
    (scores,) = (tmp_path / "results").rglob("scores.json")
    assert json.loads(scores.read_text())["datasets"]["my_target"]["n"] == 2
