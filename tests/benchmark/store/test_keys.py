"""Stage keys: which change redoes which stage."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from benchmark.config.compose import options_of
from benchmark.config.grid import sources_of
from benchmark.config.request import request
from benchmark.core.files import digest_of
from benchmark.spec import ROOT, CellSpec, DatasetSpec, TrainSpec, cell_hash, cell_id, plain
from benchmark.store import code_version
from benchmark.store.cells import Store, published_key, read_cell
from benchmark.store.keys import Digests, Keys, keys_of


class Contents(Digests):
    """Digests that a test sets."""

    def __init__(self, base: str = "base", changed: str | None = None) -> None:
        self.base, self.changed = base, changed

    def model(self, model):
        return self.base

    def records(self, dataset, data_root, split, limit):
        return f"{dataset.id} {split} {limit}" + (" new" if f"{dataset.id} {split}" == self.changed else "")


@pytest.fixture
def cell() -> CellSpec:
    return request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]


def changed(before, after) -> set[str]:
    return {stage for stage, key in before.stages.items() if after.stages.get(stage) != key}


def everything(cell: CellSpec) -> set[str]:
    return set(keys_of(cell, Contents()).stages)


def chain(*names: str) -> set[str]:
    return {f"{stage}/{name}" for stage in ("generate", "score") for name in names} | {"summary"}


def test_a_method_that_sees_the_source_sets_is_trained_again_when_their_training_data_change():
    corda, lora = (request([f"method={name}", "model=vila_pocket", "dataset=iconqa"]).cells[0] for name in (
        "corda", "lora",
    ))
    new = Contents(changed="gqa train")
    assert changed(keys_of(corda, Contents()), keys_of(corda, new)) == everything(corda)
    assert changed(keys_of(lora, Contents()), keys_of(lora, new)) == set()
    read: list[tuple[str, str, int | None]] = []

    class Noting(Contents):
        def records(self, dataset, data_root, split, limit):
            read.append((dataset.id, split, limit))
            return super().records(dataset, data_root, split, limit)

    keys_of(corda, Noting())
    sources = [(name, "train", 64) for name in ("okvqa", "textvqa", "ocrvqa", "gqa")]  # 256 samples of four sets
    assert [entry for entry in read if entry[1] == "train" and entry[0] != "iconqa"] == sources


def test_stages_come_in_order(cell):
    stages = list(keys_of(cell, Contents()).stages)
    assert stages[0] == "train" and stages[-1] == "summary"
    assert [stage.partition("/")[0] for stage in stages[1:-1]] == ["generate"] * 5 + ["score"] * 5


@pytest.mark.parametrize(
    ("contents", "redone"),
    [
        (Contents(base="other"), None),
        (Contents(changed="iconqa train"), None),
        (Contents(changed="gqa test"), chain("gqa")),
        (Contents(changed="gqa train"), set()),
        (Contents(changed="coco test"), set()),
    ],
)
def test_content_redoes_what_depends_on_it(cell, contents, redone):
    found = changed(keys_of(cell, Contents()), keys_of(cell, contents))
    assert found == (everything(cell) if redone is None else redone)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda c: replace(c, seed=1), None),
        (lambda c: replace(c, method=replace(c.method, params={"momentum": 0.5})), None),
        (lambda c: replace(c, method=replace(c.method, id="full_ft")), None),
        (lambda c: replace(c, train=replace(c.train, epochs=6)), None),
        (lambda c: replace(c, dtype="bfloat16"), None),
        (lambda c: replace(c, model=replace(c.model, preprocess="pad")), None),
        (lambda c: replace(c, model=replace(c.model, checkpoint="elsewhere", name="Other")), set()),
        (lambda c: replace(c, data_root="elsewhere", threads=8, device="cuda"), set()),
        (lambda c: replace(c, eval=replace(c.eval, batch_size=1)),
         chain("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa")),
        (lambda c: replace(c, eval=replace(c.eval, limit=5)), chain("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa")),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], metric="vqa_official"), *c.datasets[1:])),
         {"score/okvqa", "summary"}),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], max_new_tokens=3), *c.datasets[1:])), chain("okvqa")),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], stop=("\n",)), *c.datasets[1:])), chain("okvqa")),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], name="Other"), *c.datasets[1:])), set()),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], role="extra"), *c.datasets[1:])), {"summary"}),
    ],
)
def test_settings_redo_what_depends_on_them(cell, change, redone):
    found = changed(keys_of(cell, Contents()), keys_of(change(cell), Contents()))
    assert found == (everything(cell) if redone is None else redone)


def test_a_posthoc_cell_depends_on_its_full_ft_cell():
    full, dare = request(["methods=full_ft,dare", "model=vila_pocket", "dataset=iconqa"]).cells
    source = keys_of(full, Contents())
    before = keys_of(dare, Contents(), [source])
    longer = keys_of(replace(full, train=replace(full.train, epochs=6)), Contents())
    assert changed(before, keys_of(dare, Contents(), [longer])) == set(before.stages)
    assert before.train != source.train


def test_a_soup_depends_on_every_member():
    full, soup = request(["methods=full_ft,soup", "model=vila_pocket", "dataset=iconqa"]).cells
    sources = [keys_of(replace(full, seed=seed), Contents()) for seed in range(3)]
    before = keys_of(soup, Contents(), sources)
    for place in range(3):
        other = [*sources]
        other[place] = keys_of(replace(full, seed=9), Contents())
        assert changed(before, keys_of(soup, Contents(), other)) == set(before.stages)


@pytest.mark.parametrize("method", ["fisher", "wise_ft_tensors"])
def test_a_merge_that_measures_depends_on_the_generic_samples_that_it_reads(method):
    asked = [f"methods=full_ft,{method}", "model=vila_pocket", "dataset=iconqa"]
    full, merge = request(asked).cells
    source = keys_of(full, Contents())
    before = keys_of(merge, Contents(), [source])
    for new, redone in (("generic train", True), ("gqa train", False)):
        assert ("train" in changed(before, keys_of(merge, Contents(changed=new), [source]))) == redone
    *_, fewer = request([f"methods={method}", *asked[1:], "method.samples=64"]).cells
    assert "train" in changed(before, keys_of(fewer, Contents(), [source]))


OTHER = {
    "prompt": "Other? {question}", "metric": "exact_lower", "max_new_tokens": 7, "options": {"reader": "gqa", "x": 1},
    "splits": {"test": "other"}, "stop": ("\n",),
}


@pytest.mark.parametrize("name", [item.name for item in fields(DatasetSpec)])
def test_every_field_of_a_protocol_counts(cell, name):
    """Id and role have tests of their own; name and counts are words about the data, whose content counts."""
    gqa = cell.dataset("gqa")
    if name in ("id", "role", "name", "counts"):
        return
    other = replace(cell, datasets=tuple(replace(gqa, **{name: OTHER[name]}) if one is gqa else one
                                         for one in cell.datasets))
    expected = {"score/gqa", "summary"} if name == "metric" else chain("gqa")
    assert changed(keys_of(cell, Contents()), keys_of(other, Contents())) == expected


@pytest.mark.parametrize("name", [item.name for item in fields(TrainSpec)])
def test_every_training_setting_counts(cell, name):
    value = getattr(cell.train, name)
    words = {"scope": "all", "scheduler": "linear", "limit": 3, "projector": "frozen", "loss": "dft",
             "replay": "source"}
    other = words[name] if name in words else not value if isinstance(value, bool) else value * 2 + 1
    found = changed(keys_of(cell, Contents()),
                    keys_of(replace(cell, train=replace(cell.train, **{name: other})), Contents()))
    assert found == (set() if name == "gradient_checkpointing" else everything(cell))


# -- remembered digests -------------------------------------------------------------------------------------------


def test_a_digest_is_computed_again_only_when_a_file_changes(tmp_path, monkeypatch, cell):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("one")
    model = replace(cell.model, checkpoint=str(checkpoint))
    count = itertools.count()
    monkeypatch.setattr("benchmark.models.digest", lambda path: f"{(path / 'weights').read_text()} {next(count)}")
    cache = tmp_path / "digests.json"
    assert Digests(cache).model(model) == Digests(cache).model(model) == "one 0"
    (checkpoint / "weights").write_text("other")
    assert Digests(cache).model(model) == "other 1"
    cache.write_text("damaged")
    assert Digests(cache).model(model) == "other 2"
    assert json.loads(cache.read_text())
    assert Digests(tmp_path / "no folder" / "digests.json").model(model) == "other 3"
    assert not (tmp_path / "no folder").exists()


def test_reading_data_the_first_time_tells_how_far_it_is(tmp_path, monkeypatch, cell):
    from benchmark import data

    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    records = [data.Record(path.stem, "gqa", "test", path, "?", "a", ("a",), None, path.stem, {}) for path in paths]
    monkeypatch.setattr(data, "load", lambda *_: records)
    told, cache = [], tmp_path / "digests.json"
    for _ in range(2):  # the second time nothing is read
        digests = Digests(cache, told=lambda *report: told.append(report))
        digests.records(cell.dataset("gqa"), str(tmp_path), "test", None)
    assert told == [("gqa/test: images", done, 3) for done in (1, 2, 3)]


def test_records_are_read_again_when_their_reader_changes(tmp_path, monkeypatch, cell):
    from benchmark import data

    read, code, cache = [], ["one"], tmp_path / "digests.json"
    monkeypatch.setattr(data, "load", lambda *_: read.append(1) or [])
    monkeypatch.setattr("benchmark.store.code_version.code_digest", lambda files: f"{files[-1]} {code[0]}")
    for _ in range(2):
        Digests(cache).records(cell.dataset("gqa"), str(tmp_path), "test", None)
    assert len(read) == 1
    code[0] = "other"
    Digests(cache).records(cell.dataset("gqa"), str(tmp_path), "test", None)
    assert len(read) == 2
    assert data.reader_module(cell.dataset("gqa")) == "benchmark.data.readers.gqa"


def test_a_broken_link_hides_no_change_of_the_files_beside_it(tmp_path):
    from benchmark.store.keys import _walk

    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    for name in "abc":
        (tmp_path / name).touch()
    assert sorted(Path(path).name for path, *_ in _walk(str(tmp_path))) == ["a", "b", "broken", "c"]


def test_the_dtype_of_answers_redoes_them_alone_and_is_named_where_it_differs(cell):
    def at(dtype):
        return replace(cell, eval=replace(cell.eval, dtype=dtype))

    answers = {stage for stage in everything(cell) if not stage.startswith("train")}
    assert changed(keys_of(cell, Contents()), keys_of(at("float16"), Contents())) == answers
    assert changed(keys_of(at("bfloat16"), Contents()), keys_of(at("float16"), Contents())) == answers
    assert cell_id(at("float16")) != cell_id(cell) == cell_id(at("float32"))  # as the cell's own: not named
    assert keys_of(at("float32"), Contents()) == keys_of(cell, Contents())
    paper = request(["method=full_ft", "model=vila15_3b", "dataset=coco", "profile=paper"])
    assert paper.cells[0].eval.dtype == "float16"


# ---------------------------------------------------------------------------------------------------------------
# Published cells: their ids and keys stay


PUBLISHED = Store(ROOT / "results" / "pocket")


class DrawnContents(Digests):
    """Digests of the shipped checkpoints and the drawn data, as they were when the cells were published."""

    def __init__(self) -> None:
        self.known = json.loads(Path(__file__).with_name("published_contents.json").read_text())

    def model(self, model):
        return self.known[model.id]

    def records(self, dataset, data_root, split, limit):
        return self.known[f"{dataset.id} {digest_of([plain(dataset), split, limit])[:8]}"]


@pytest.fixture(scope="module")
def published() -> dict[str, CellSpec]:
    return {folder.name: read_cell(folder) for folder in PUBLISHED.all_cells()}


@pytest.mark.slow
def test_published_cells_keep_their_ids(published):
    assert len(published) >= 324
    assert [name for name, cell in published.items() if cell_id(cell) != name] == []
    asked = request([
        "models=vila_pocket,llava_pocket", f"methods={','.join(options_of('method'))}",
        "targets=flickr30k,coco,iconqa,scienceqa", "seeds=0,1,2",
    ])
    composed = {cell_id(cell) for cell in asked.cells}
    as_configured = {name for name, cell in published.items() if not cell.changed}
    assert len(as_configured) >= 150 and as_configured <= composed


@pytest.mark.slow
def test_published_cells_keep_their_keys(published, monkeypatch):
    """With the code versions that each was made with, so that the test outlives a change of code."""
    digests, by_hash, made = DrawnContents(), {cell_hash(cell): name for name, cell in published.items()}, {}
    full_ft = request(["method=full_ft", "model=vila_pocket", "dataset=coco"]).cells[0].method

    def keys(name: str) -> Keys:
        if name not in made:
            cell = published[name]
            names = [by_hash[cell_hash(one)] for one in sources_of(cell, full_ft)] if cell.method.posthoc else []
            sources = [keys(one) for one in names]
            code = json.loads((PUBLISHED.cells / name / "provenance.json").read_text(encoding="utf-8"))["code"]
            monkeypatch.setattr(code_version, "of_cell", lambda *of: code)
            made[name] = keys_of(cell, digests, sources)
        return made[name]

    assert {name: keys(name).summary for name in published} == {
        name: published_key(PUBLISHED.cells / name) for name in published
    }
