"""The drawn suite: deterministic, in the official layouts, disjoint, balanced."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

import pytest
from fontTools.ttLib import TTFont

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.data import digest, load
from benchmark.pocket.world import folder, targets, upstream
from benchmark.pocket.world.icons import CATEGORIES, COLOURS, ICONS, icon_font_path
from benchmark.pocket.world.splits import SHARES, TARGETS, UPSTREAM, owner
from benchmark.pocket.world.suite import POCKET, POCKET_10K, Suite

FEW = {"train": 12, "validation": 6, "test": 9}
SMALL = Suite(dict.fromkeys(UPSTREAM + TARGETS, FEW))


@pytest.fixture(scope="module")
def specs():
    return request(["profile=pocket"], grid=False).datasets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    SMALL.draw(root)
    return root


def read(specs, root, name, split):
    from dataclasses import replace

    return load(replace(specs[name], counts={}), root, split)


@pytest.mark.parametrize("name", UPSTREAM + TARGETS)
def test_official_readers_read_every_split(specs, root, name):
    for split, count in FEW.items():
        records = read(specs, root, name, split)
        assert len(records) == count
        for record in records:
            assert record.image is None or record.image.is_file()


def test_drawing_twice_gives_the_same_content(specs, root, tmp_path):
    SMALL.draw(tmp_path, only=("gqa", "coco", "scienceqa"))
    for name in ("gqa", "coco", "scienceqa"):
        for split in FEW:
            assert digest(read(specs, tmp_path, name, split)) == digest(read(specs, root, name, split))


def test_no_content_in_two_splits_or_sets(root):
    seen: dict[str, tuple[str, str]] = {}
    for name in UPSTREAM + TARGETS:
        for split, keys in json.loads((root / name / "scene_keys.json").read_text()).items():
            for key in keys.values():
                assert owner(key) == (name, split)
                assert seen.setdefault(key, (name, split)) == (name, split)  # training rows may repeat a content
    assert sum(share for _, share in SHARES) <= 1000
    assert len({who for who, _ in SHARES}) == len(SHARES)


def test_finished_sets_are_not_drawn_again_and_foreign_files_are_kept(root, tmp_path):
    before = (root / "gqa" / "drawn.json").stat().st_mtime_ns
    SMALL.draw(root, only=("gqa",))
    assert (root / "gqa" / "drawn.json").stat().st_mtime_ns == before
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="did not write"):
        SMALL.draw(tmp_path, only=("gqa",))
    assert (tmp_path / "gqa" / "mine.txt").read_text() == "precious"


def test_another_version_is_drawn_again(root, monkeypatch):
    stamp = root / "okvqa" / "drawn.json"
    stamp.write_text(json.dumps({"version": "older", "counts": FEW}))
    SMALL.draw(root, only=("okvqa",))
    assert json.loads(stamp.read_text())["version"] == folder.code_version()


def test_the_two_sizes_differ_in_the_targets_training_rows_alone():
    assert {name for name in POCKET.counts if POCKET.counts[name] != POCKET_10K.counts[name]} == set(TARGETS)
    assert {POCKET.counts[name]["train"] for name in TARGETS} == {512}
    assert {POCKET_10K.counts[name]["train"] for name in TARGETS} == {10_000}


def test_icon_table():
    glyphs = TTFont(icon_font_path()).getBestCmap()
    assert len(ICONS) >= 40 and len(COLOURS) >= 8
    assert all(icon.glyph in glyphs for icon in ICONS)
    assert len({icon.name for icon in ICONS}) == len({icon.synonym for icon in ICONS}) == len(ICONS)
    for category in CATEGORIES:
        facts = [icon.fact for icon in ICONS if icon.category == category]
        assert len(set(facts)) == len(facts) >= 8


def test_gqa_types_are_balanced():
    questions = []
    rng = random.Random(0)
    while len(questions) < 6000:
        _, found = upstream.gqa(rng)
        questions += upstream.gqa_balanced(rng, found, 3)
    verify = [q.answer for q in questions if q.kind == "verify"]
    assert 0.15 < len(verify) / len(questions) <= 0.30
    assert 0.45 < Counter(verify)["yes"] / len(verify) < 0.55
    kinds = Counter(q.kind for q in questions)
    assert set(kinds) == {"colour", "object", "relation", "count", "place", "verify"}


def test_relations_follow_the_grid():
    cat = upstream.Thing("cat", "red", (0, 0), 30, (0, 0))
    dog = upstream.Thing("dog", "blue", (2, 1), 30, (0, 0))
    scene = upstream.Scene("beach", (cat, dog))
    assert upstream.related(scene, cat, "below") == [dog] and upstream.related(scene, cat, "right of") == [dog]
    assert upstream.related(scene, dog, "above") == [cat] and upstream.related(scene, dog, "left of") == [cat]
    assert upstream.related(scene, cat, "above") == [] and upstream.related(scene, dog, "right of") == []


def test_ocr_line_has_the_right_word_in_half_of_the_items():
    rng = random.Random(0)
    lines = [upstream.ocr_tokens(rng, "CAFE") for _ in range(4000)]
    assert {len(line) for line in lines} == {3, 4, 5, 6}
    assert 0.47 < sum("CAFE" in line for line in lines) / len(lines) < 0.53
    assert all(len(set(line)) == len(line) for line in lines)


def test_annotators_agree_enough():
    rng = random.Random(0)
    for _ in range(500):
        answers = upstream.annotators(rng, "hay", ("grass", "oats"))
        assert len(answers) == 10 and Counter(answers)["hay"] >= 6
    assert len({upstream.annotators(rng, "hay", ("grass", "oats")) for _ in range(50)}) > 3


@pytest.mark.parametrize("style", ["coco", "flickr30k"])
def test_five_different_captions_of_six_to_fourteen_words(style):
    rng = random.Random(0)
    for _ in range(300):
        found = targets.captions(rng, targets.caption_scene(rng), style)
        assert len(set(found)) == 5
        assert all(6 <= len(caption.split()) <= 14 for caption in found)


def test_choices_have_one_right_answer():
    rng = random.Random(0)
    for make in (targets.iconqa, targets.scienceqa):
        items = [make(rng) for _ in range(600)]
        for item in items:
            assert 2 <= len(item.options) <= 5 and len(set(item.options)) == len(item.options)
            assert 0 <= item.answer < len(item.options)
        assert len({item.kind for item in items}) >= 4
    text_only = [targets.scienceqa(rng).picture is None for _ in range(600)]
    assert 0.3 < sum(text_only) / 600 < 0.55


def test_diagram_counts_are_true():
    rng = random.Random(1)
    for item in islice((targets.iconqa(rng) for _ in range(2000)), 2000):
        if item.kind == "count" and item.question.startswith("Count"):
            plural = item.question.removeprefix("Count the ").removesuffix(".")
            number = sum(targets.SHAPE_PLURAL[s.kind] == plural for s in item.picture.shapes)
            assert item.options[item.answer] == targets.NUMBERS[number]


def test_a_kill_while_data_of_an_older_version_are_replaced_leaves_nothing_that_the_next_run_refuses(
    tmp_path, monkeypatch
):
    """The kill comes in the middle of the deletion of the old folder: its stamp is gone, its pictures are not."""
    SMALL.draw(tmp_path, only=("gqa",))
    stamp = tmp_path / "gqa" / "drawn.json"
    stamp.write_text(json.dumps({"version": "older"}))

    def killed(path, ignore_errors=False):
        if (path / "drawn.json").is_file() and json.loads((path / "drawn.json").read_text()) == {"version": "older"}:
            (path / "drawn.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        SMALL.draw(tmp_path, only=("gqa",))
    SMALL.draw(tmp_path, only=("gqa",))
    assert json.loads(stamp.read_text())["version"] == folder.code_version()
