"""The audit: sound data pass, planted faults fail, baselines are the hand-computed ones."""

from __future__ import annotations

import io
import json
import re
import sys
import types

import pytest
from PIL import Image
from rich.console import Console

from benchmark.audit.data import answerer, audit, main, mean_colour
from benchmark.audit.data_report import markdown, tables, verdict
from benchmark.core.errors import UserError
from benchmark.data import load, open_image

QUESTIONS = {
    "train": [("1", "Which colour is it?", "red"), ("2", "Which colour is it?", "red"),
              ("3", "Which colour is that?", "blue")],
    "val": [("4", "Which colour is it?", "red")],
    "testdev": [("5", "Which colour is it?", "red"), ("6", "Which colour is that?", "blue"),
                ("7", "Which colour is this?", "green"), ("8", "Which colour is that?", "red")],
}


@pytest.fixture
def root(tmp_path):
    """GQA with three splits: eight images, each of its own colour, one question each."""
    folder = tmp_path / "gqa"
    (folder / "images").mkdir(parents=True)
    keys = {}
    for name, ours in (("train", "train"), ("val", "validation"), ("testdev", "test")):
        (folder / f"{name}_balanced_questions.json").write_text(json.dumps({
            number: {"imageId": number, "question": question, "answer": answer, "isBalanced": True,
                     "types": {"structural": "query", "semantic": "attr", "detailed": "colour"}}
            for number, question, answer in QUESTIONS[name]
        }))
        for number, _, _ in QUESTIONS[name]:
            Image.new("RGB", (8, 8), (30 * int(number), 0, 0)).save(folder / "images" / f"{number}.png")
        keys[ours] = {number: f"scene {number}" for number, _, _ in QUESTIONS[name]}
    (folder / "scene_keys.json").write_text(json.dumps(keys))
    return tmp_path


def run(specs, root, **more):
    """Return exit code and what was printed."""
    stream = io.StringIO()
    code = main(specs, root, console=Console(file=stream, width=200), **more)
    return code, stream.getvalue()


def test_sound_data_pass(root, spec_of):
    code, text = run([spec_of("gqa", counts={"train": 3, "validation": 1, "test": 4})], root)
    assert code == 0 and "AUDIT PASSED: 8 scenes in 3 splits, none shared" in text


def plant(root, split, number, key):
    """Give a group another scene key."""
    path = root / "gqa" / "scene_keys.json"
    keys = json.loads(path.read_text())
    keys[split][number] = key
    path.write_text(json.dumps(keys))


def test_a_planted_duplicate_scene_fails(root, spec_of):
    plant(root, "test", "7", "scene 2")
    code, text = run([spec_of("gqa")], root)
    assert code == 1
    assert "AUDIT FAILED" in text and "In more than one split or dataset: 1 scene." in text
    assert "gqa/test group 7 = gqa/train group 2 (scene 2)" in text


def test_the_same_scene_twice_in_one_split_is_counted_only(root, spec_of):
    plant(root, "test", "7", "scene 8")
    report = audit([spec_of("gqa")], root)
    assert report.passed
    row = next(row for row in report.splits if row["split"] == "test")
    assert (row["items"], row["groups"], row["images"], row["scenes"]) == (4, 4, 4, 3)


def test_without_scene_keys_equal_bytes_are_a_duplicate(root, spec_of):
    (root / "gqa" / "scene_keys.json").unlink()
    report = audit([spec_of("gqa")], root)
    assert report.passed and {row["keys"] for row in report.splits} == {"image bytes"}
    (root / "gqa" / "images" / "7.png").write_bytes((root / "gqa" / "images" / "2.png").read_bytes())
    code, text = run([spec_of("gqa")], root)
    assert code == 1 and "gqa/test group 7 = gqa/train group 2" in text


def test_a_duplicate_in_another_data_set_fails(root, spec_of, iconqa):
    assert iconqa == root, "both fixtures write below the same folder"
    (root / "iconqa" / "scene_keys.json").write_text('{"test": {"35254": "scene 5"}}')
    code, text = run([spec_of("gqa"), spec_of("iconqa")], root)
    assert code == 1 and "gqa/test group 5 = iconqa/test group 35254 (scene 5)" in text


def test_a_group_without_a_key_fails(root, spec_of):
    path = root / "gqa" / "scene_keys.json"
    keys = json.loads(path.read_text())
    del keys["train"]["3"]
    path.write_text(json.dumps(keys))
    code, text = run([spec_of("gqa")], root)
    assert code == 1 and "1 of 3 groups of train have no scene key (first: 3)" in text


def test_wrong_counts_and_unreadable_images_are_all_listed(root, spec_of, iconqa):
    (root / "gqa" / "images" / "4.png").write_bytes(b"no image")
    specs = [spec_of("gqa", counts={"train": 9}), spec_of("iconqa")]
    code, text = run(specs, root)
    assert code == 1
    assert "gqa/train has 3 items" in text and "expected 9" in text
    assert "1 of 1 images cannot be read:" in text and "4.jpg (item 4 of gqa/validation)" in text
    assert "iconqa" in text, "the other dataset is audited all the same"


def test_the_audit_tells_how_far_it_is_over_all_sets(root, spec_of, iconqa):
    """One count over all images, so that the time left is that of the whole and not of one set."""
    (root / "gqa" / "images" / "4.png").write_bytes(b"no image")
    told = []
    report = audit([spec_of("gqa"), spec_of("iconqa")], root, told=lambda *report: told.append(report))
    images = [count for stage, *count in told if stage == "images"]
    total = images[0][1]
    assert any("4.png" in fault for fault in report.faults)
    assert images == [[done, total] for done in range(1, total + 1)] and total > 8
    assert [count for stage, *count in told if stage == "baselines"] == [[0, 2], [1, 2]]


def test_a_split_that_is_not_on_disk_fails_only_if_it_is_counted(root, spec_of):
    (root / "gqa" / "train_balanced_questions.json").unlink()
    assert audit([spec_of("gqa", counts={"train": None})], root).passed
    code, text = run([spec_of("gqa", counts={"train": 3})], root)
    assert code == 1 and "train_balanced_questions.json does not exist" in text


def test_nothing_there_is_a_users_mistake(tmp_path, spec_of):
    with pytest.raises(UserError, match="has no dataset"):
        audit([spec_of("gqa")], tmp_path)


def test_a_variant_of_a_protocol_is_no_duplicate(textvqa, spec_of):
    specs = [
        spec_of("textvqa", splits={"validation": None}),
        spec_of("textvqa_no_ocr", options={"reader": "textvqa", "ocr_tokens": False}),
    ]
    for number, image in enumerate(("003a8ae2ef43b901", "0054c91397f2fe05")):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(textvqa / "textvqa" / "train_images" / f"{image}.jpg")
    report = audit(specs, textvqa)
    assert report.passed and len(report.splits) == 1
    assert [row["dataset"] for row in report.questions] == ["textvqa", "textvqa_no_ocr"]


def test_question_baselines_by_hand(root, spec_of):
    (row,) = audit([spec_of("gqa")], root).questions
    assert row["majority"] == 50.0, "red for all four: items 5 and 8"
    assert row["lookup"] == 50.0, "red, blue, red, blue: items 5 and 6"
    assert row["ceiling"] == 100.0 and row["learned_from"] == "train" and row["n"] == 4


def test_without_training_answers_majority_is_marked_and_lookup_absent(root, spec_of):
    (root / "gqa" / "train_balanced_questions.json").unlink()
    (row,) = audit([spec_of("gqa")], root).questions
    assert row["majority"] == 50.0 and row["lookup"] is None and row["learned_from"] == "test"
    code, text = run([spec_of("gqa")], root)
    assert code == 0 and "50.0*" in text


def test_the_ceiling_of_disagreeing_annotators(okvqa, spec_of):
    (row,) = audit([spec_of("okvqa")], okvqa).questions
    # race: six of ten agree, full points leaving any one out. rider: four of ten, 3/3 of four for the six
    # others and 3/3 of three for the four themselves: full points as well.
    assert row["ceiling"] == 100.0
    path = okvqa / "okvqa" / "mscoco_val2014_annotations.json"
    annotations = json.loads(path.read_text())
    for number, answer in enumerate(annotations["annotations"][0]["answers"]):
        answer["answer"] = f"answer {number // 2}"
    path.write_text(json.dumps(annotations))
    (row,) = audit([spec_of("okvqa")], okvqa).questions
    # Now five pairs for one of two items: 2/3 for the eight others, 1/3 for the two themselves = 0.6.
    assert row["ceiling"] == pytest.approx(100 * (1 + 0.6) / 2)


def test_image_items_get_a_row_of_their_own(scienceqa, spec_of):
    rows = audit([spec_of("scienceqa")], scienceqa).questions
    assert [(row["items"], row["n"]) for row in rows] == [("all", 2), ("image", 1)]


def test_bases_answer_blind_and_sighted(root, spec_of):
    def base(spec, records):
        """Answer red for dark images: 5 and 6 of the four, and their mean."""
        reds = {each.item_id: open_image(each).getpixel((0, 0))[0] for each in records}
        return {item: "red" if red < 200 else "blue" for item, red in reds.items()}

    (row,) = audit([spec_of("gqa")], root, {"base": base}).questions
    assert row["bases"] == {"base": {"blind": 50.0, "sighted": 25.0}}
    code, text = run([spec_of("gqa")], root, bases={"base": base})
    assert "base blind" in text and "base sighted" in text


def test_a_loaded_model_answers_through_generation(root, spec_of, monkeypatch):
    asked = []

    def generate(loaded, records, spec, out_jsonl, batch_size, on_progress):
        """Write answers in another order, as length buckets do."""
        asked.append((loaded, spec.id, batch_size))
        out_jsonl.write_text("".join(
            json.dumps({"item_id": each.item_id, "text": each.target, "n_tokens": 1}) + "\n"
            for each in reversed(records)
        ))

    monkeypatch.setitem(sys.modules, "benchmark.training.generate", types.SimpleNamespace(generate=generate))
    records = load(spec_of("gqa"), root, "test")
    answers = answerer("model", batch_size=7)(spec_of("gqa"), records)
    assert answers == {"5": "red", "6": "blue", "7": "green", "8": "red"} and asked == [("model", "gqa", 7)]


def test_the_blind_image_is_the_mean_colour(root, spec_of, tmp_path):
    records = load(spec_of("gqa"), root, "test")
    blind = mean_colour(records, tmp_path / "blind")
    assert {open_image(each).getpixel((3, 3)) for each in blind} == {(30 * 26 // 4, 0, 0)}
    assert open_image(blind[0]).size == (8, 8)
    assert [each.prompt for each in blind] == [each.prompt for each in records]


def test_text_only_items_stay_as_they_are(scienceqa, spec_of, tmp_path):
    records = load(spec_of("scienceqa"), scienceqa, "test")
    blind = mean_colour(records, tmp_path / "blind")
    assert blind[1] == records[1] and blind[0].image != records[0].image
    assert mean_colour(records[1:], tmp_path) == records[1:]


CAPTIONS = [
    ["a red dog runs", "a red dog is running", "the dog runs fast", "one dog in red runs", "a dog runs"],
    ["two blue boats sail", "blue boats at sea", "two boats sail away", "boats sail", "two blue boats"],
    ["an old church stands", "a church on a hill", "the old church", "a church on the hill", "old church"],
    ["five green apples", "apples in a bowl", "green apples lie here", "five apples in a bowl", "apples"],
]


@pytest.mark.slow
def test_caption_baselines(tmp_path, spec_of):
    folder = tmp_path / "flickr30k"
    (folder / "flickr30k-images").mkdir(parents=True)
    images = []
    for number, texts in enumerate(CAPTIONS):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / "flickr30k-images" / f"{number}.png")
        images.append({"imgid": number, "split": "test", "filename": f"{number}.png",
                       "sentences": [{"raw": text} for text in texts]})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    (row,) = audit([spec_of("flickr30k")], tmp_path).captions
    assert row["n"] == 4 and row["learned_from"] == "test"
    assert row["one_reference"] > 50
    assert row["shuffled"] < 5 and row["commonest"] < row["one_reference"] / 2


def test_files_are_written(root, spec_of, tmp_path):
    out = tmp_path / "results"
    code, _ = run([spec_of("gqa")], root, out=out)
    content = json.loads((out / "audit.json").read_text())
    assert code == 0 and content["passed"] is True and content["questions"][0]["majority"] == 50.0
    text = (out / "audit.md").read_text()
    assert "| dataset | n | majority | lookup | ceiling |" in text
    assert "| gqa | 4 | 50.0 | 50.0 | 100.0 |" in text
    assert "AUDIT PASSED" in text


def test_values_outside_their_range_are_marked(root, spec_of):
    report = audit([spec_of("gqa")], root)
    report.captions = [
        {"dataset": "coco", "n": 9, "learned_from": "train", "one_reference": 60.0, "commonest": 15.0,
         "shuffled": 31.0, "bases": {}},
    ]
    assert "| coco | 9 | 60.0 ! | 15.0 | 31.0 ! |" in markdown(report)


def test_the_table_says_how_scenes_are_told_apart(root, spec_of):
    report = audit([spec_of("gqa")], root)
    assert len(tables(report)) == 2
    assert re.search(r"\| gqa \| test \| scene keys \| 4 \| 4 \| 4 \| 4 \|", markdown(report))
    report.duplicates = [{"key": str(number), "places": ["a", "b"]} for number in range(12)]
    assert "... and 2 more" in verdict(report)
