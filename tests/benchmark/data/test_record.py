"""Images of records, digests, subsets, counts and unreadable files."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.data import DATASETS, Record, check_images, digest, load, open_image, subset

ORIENTATION = 0x0112  # EXIF's tag


def record(name, image=None, **changes):
    base = Record(name, "gqa", "test", image, "Q?\nAnswer.", "a", ("a",), None, "g", {"question": "Q?"})
    return dataclasses.replace(base, **changes)


@pytest.fixture
def three(tmp_path):
    """Three records with images."""
    made = []
    for number, colour in enumerate(("red", "green", "blue")):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (9, 7), colour).save(path)
        made.append(record(str(number), path))
    return made


def generated(folder, count):
    """Write small images of every kind that the formats have; yield their paths."""
    draw = np.random.default_rng(16)
    kinds = [
        ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGBA", "webp"), ("I;16", "png"), ("I;16", "tiff"),
        ("I", "tiff"), ("CMYK", "jpg"), ("CMYK", "tiff"), ("RGB", "jpg"), ("RGB", "png"), ("L", "png"), ("1", "png"),
    ]
    for number in range(count):
        mode, ending = kinds[number % len(kinds)]
        height, width = draw.integers(1, 9, 2)
        path, options = folder / f"{number}.{ending}", {}
        if mode in ("I;16", "I"):
            levels = draw.integers(0, 70_000 if mode == "I" else 65_536, (height, width))
            image = Image.fromarray(levels.astype(np.int32 if mode == "I" else np.uint16))
        elif mode == "P":
            image = Image.fromarray(draw.integers(0, 4, (height, width), dtype=np.uint8)).convert("L")
            image.putpalette(draw.integers(0, 256, 12, dtype=np.uint8).tobytes())
            some = [0, 1, bytes([0, 90, 255, 200])][number // len(kinds) % (2 if ending == "gif" else 3)]
            options = {"transparency": some}
        elif mode == "1":
            image = Image.fromarray(draw.random((height, width)) < 0.5)
        else:
            shape = (height, width) + ((len(mode),) if len(mode) > 1 else ())
            image = Image.frombytes(mode, (int(width), int(height)), draw.integers(0, 256, shape, np.uint8).tobytes())
            if mode in ("RGB", "L") and ending == "png" and number % 3 == 0:
                options = {"transparency": tuple(map(int, draw.integers(0, 256, 3))) if mode == "RGB" else 7}
        if ending in ("jpg", "png", "webp") and number % 2:
            options["exif"] = (exif := Image.Exif())
            exif[ORIENTATION] = int(draw.integers(1, 9))
        image.save(path, **options)
        yield path


@pytest.mark.slow
def test_images_are_what_the_original_pipelines_call_makes_of_them(tmp_path):
    """Image.open(path).convert("RGB"), of 5,040 images: alpha, palettes, 16 bits, CMYK, EXIF orientation."""
    clear = 0
    for number, path in enumerate(generated(tmp_path, 5040)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about transparent palettes
            theirs = Image.open(path).convert("RGB")
        ours = open_image(record(str(number), path))
        assert ours.mode == "RGB" and ours.size == theirs.size and ours.tobytes() == theirs.tobytes(), path
        clear += open_image(record(str(number), path), "white").tobytes() != ours.tobytes()
    assert clear > 1000  # the named alternative is another one


def test_transparency_on_white_is_a_named_alternative(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(path)
    assert open_image(record("1", path)).getpixel((0, 0)) == (255, 0, 0)
    assert open_image(record("1", path), "white").getpixel((0, 0)) == (255, 255, 255)


def test_grey_images_become_rgb(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (2, 2), 77).save(path)
    assert open_image(record("1", path)).getpixel((1, 1)) == (77, 77, 77)


def test_print_colours_and_the_first_frame(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = open_image(record("1", path)).getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    path = tmp_path / "moves.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert open_image(record("1", path)).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize(("mode", "size", "reason"), [
    ("1", (16_385, 1), "16385 x 1 pixels"), ("1", (9000, 9000), "9000 x 9000 pixels; at most 64 million"),
    ("1", (1, 201), "1 x 201 pixels; .* 200 to 1"), ("F", (2, 2), "floating point"),
])
def test_images_that_would_fill_the_memory_or_mean_nothing_are_refused(tmp_path, mode, size, reason, recwarn):
    path = tmp_path / ("x.tiff" if mode == "F" else "x.png")
    Image.new(mode, size).save(path)
    with pytest.raises(UserError, match=reason):
        open_image(record("1", path))
    assert not recwarn.list


def test_formats_that_start_other_programs_are_refused(tmp_path):
    path = tmp_path / "page.png"
    Image.new("RGB", (4, 4)).save(path, "EPS")
    with pytest.raises(UserError, match="cannot identify image file"):
        open_image(record("1", path))


def test_a_missing_image_is_named(three):
    three[1].image.unlink()
    with pytest.raises(UserError, match=r"Cannot read the image .*1\.png \(item 1 of gqa/test\): .*Restore"):
        open_image(three[1])


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"hello"])
def test_a_corrupt_image_is_named(three, content):
    three[1].image.write_bytes(content)
    with pytest.raises(UserError, match=r"1\.png \(item 1 of gqa/test\)"):
        open_image(three[1])


def test_a_truncated_image_is_named(tmp_path):
    path = tmp_path / "noise.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"noise\.png \(item 7 of gqa/test\)"):
        open_image(record("7", path))


def test_unreadable_images_are_counted_and_named(three):
    three[0].image.write_bytes(b"no image")
    three[2].image.unlink()
    with pytest.raises(UserError) as caught:
        check_images([*three, record("text")])
    message = str(caught.value)
    assert message.startswith("2 of 3 images cannot be read:")
    assert "0.png (item 0" in message and "2.png (item 2" in message and "1.png" not in message


def test_only_five_faults_are_spelled_out(tmp_path):
    with pytest.raises(UserError, match=r"8 of 8 images(.|\n)*\.\.\. and 3 more"):
        check_images([record(str(number), tmp_path / f"{number}.png") for number in range(8)])


def test_readable_images_are_counted(three):
    assert check_images([*three, *three, record("text")]) == 3


def test_checking_images_tells_how_far_it_is(three):
    three[1].image.write_bytes(b"no image")
    told = []
    with pytest.raises(UserError, match="1 of 3"):
        check_images([*three, *three, record("text")], lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_digest_does_not_depend_on_the_folder(three, tmp_path):
    moved = []
    for each in three:
        path = tmp_path / "elsewhere" / each.image.name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(each.image, path)
        moved.append(dataclasses.replace(each, image=path))
    assert digest(moved) == digest(three)


def test_digest_sees_one_byte_of_an_image(three):
    before = digest(three)
    content = bytearray(three[2].image.read_bytes())
    content[-1] ^= 1
    three[2].image.write_bytes(bytes(content))
    assert digest(three) != before


@pytest.mark.parametrize("change", [
    {"item_id": "x"}, {"dataset": "x"}, {"split": "x"}, {"image": None}, {"prompt": "x"}, {"target": "x"},
    {"target": None}, {"references": ("a", "a")}, {"options": ("a",)}, {"group": "x"}, {"meta": {}},
])
def test_digest_sees_every_field(three, change):
    assert digest([dataclasses.replace(three[0], **change), *three[1:]]) != digest(three)


def test_digest_sees_order(three):
    assert digest(three[::-1]) != digest(three)


def test_digest_names_a_missing_image(three):
    three[1].image.unlink()
    with pytest.raises(UserError, match=r"1\.png \(item 1 of gqa/test\)"):
        digest(three)


@given(st.integers(0, 5), st.lists(st.integers(1, 60), min_size=2, max_size=5))
def test_subsets_of_one_seed_nest(seed, limits):
    records = [record(str(number)) for number in range(60)]
    kept = [[each.item_id for each in subset(records, limit, seed)] for limit in sorted(limits)]
    for limit, ids in zip(sorted(limits), kept, strict=True):
        assert len(ids) == limit
        assert ids == sorted(ids, key=int), "file order"
    for smaller, larger in zip(kept, kept[1:], strict=False):
        assert set(smaller) <= set(larger)


def test_subsets_depend_on_the_seed_only():
    records = [record(str(number)) for number in range(60)]
    assert subset(records, 10, 0) == subset(records, 10, 0) != subset(records, 10, 1)
    assert subset(records, None) == subset(records, 60) == subset(records, 99) == records
    assert subset(records, 10) != records[:10], "a sample, not the head of the file"
    added = records + [record("new")]
    assert len(set(map(id, subset(added, 10))) & set(map(id, subset(records, 10)))) >= 9


def test_no_items_asked():
    with pytest.raises(UserError, match="limit=0"):
        subset([record("1"), record("2")], 0)


def test_load_limits_after_the_protocols_sample(flickr30k, spec_of):
    spec = spec_of("flickr30k", options={"sample": {"train": 2}}, counts={"train": 2})
    sample = {each.group for each in load(spec, flickr30k, "train")}
    (one,) = load(spec, flickr30k, "train", limit=1)
    assert len(sample) == 2 and one.group in sample


def test_counts_are_asserted(gqa, spec_of):
    assert len(load(spec_of("gqa", counts={"test": 2, "train": None}), gqa, "test")) == 2
    with pytest.raises(UserError, match=r"gqa/test has 2 items in .*gqa, expected 3\. Fetch .*counts\.test"):
        load(spec_of("gqa", counts={"test": 3}), gqa, "test")
    with pytest.raises(UserError, match="gqa/test has 2 items in .* expected 1"):
        load(spec_of("gqa", counts={"test": 1}), gqa, "test")


def test_an_item_twice(iconqa, spec_of):
    path = iconqa / "iconqa" / "iconqa_data" / "pid_splits.json"
    path.write_text('{"choose_txt_test": ["35254", "35254"]}')
    with pytest.raises(UserError, match="has item 35254 twice"):
        load(spec_of("iconqa"), iconqa, "test")


def test_unknown_names_get_the_nearest(gqa, spec_of):
    with pytest.raises(UserError, match="Unknown dataset 'gpa'. Did you mean 'gqa'"):
        load(spec_of("gqa", id="gpa"), gqa, "test")
    with pytest.raises(UserError, match="Unknown split 'valid' of gqa. Did you mean 'validation'"):
        load(spec_of("gqa"), gqa, "valid")


def test_a_prompt_with_an_unknown_field(gqa, spec_of):
    with pytest.raises(UserError, match="prompt of gqa names the field 'qestion'.*Did you mean 'question'"):
        load(spec_of("gqa", prompt="{qestion}"), gqa, "test")
    with pytest.raises(UserError, match="prompt of gqa is not a valid template"):
        load(spec_of("gqa", prompt="{question"), gqa, "test")


def test_braces_in_a_question_are_text(gqa, spec_of):
    path = gqa / "gqa" / "testdev_balanced_questions.json"
    path.write_text(path.read_text().replace("Is it overcast?", "Is {answer} overcast?"))
    assert load(spec_of("gqa"), gqa, "test")[0].prompt.startswith("Is {answer} overcast?\n")


FILES = {
    "okvqa": ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    "textvqa": ("TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"),
    "ocrvqa": ("dataset.json",),
    "gqa": ("testdev_balanced_questions.json",),
    "flickr30k": ("dataset_flickr30k.json",),
    "coco": ("dataset_coco.json",),
    "iconqa": ("iconqa_data/problems.json", "iconqa_data/pid_splits.json"),
    "scienceqa": ("problems.json", "pid_splits.json"),
}
KEYS = {
    "okvqa": ("question", "question_id", "image_id", "questions", "annotations", "answers", "answer"),
    "textvqa": ("data", "question", "question_id", "image_id", "answers", "ocr_tokens"),
    "ocrvqa": ("questions", "answers", "split"),
    "gqa": ("question", "answer", "imageId", "types", "detailed"),
    "flickr30k": ("images", "imgid", "split", "sentences", "raw", "filename"),
    "coco": ("images", "cocoid", "split", "sentences", "raw", "filename", "filepath"),
    "iconqa": ("question", "choices", "answer", "choose_txt_test"),
    "scienceqa": ("question", "choices", "answer", "hint", "image", "test"),
}
assert set(FILES) == set(KEYS) == set(DATASETS)
EACH_FILE = [(name, file) for name, files in FILES.items() for file in files]


@pytest.mark.parametrize(("name", "file"), EACH_FILE)
def test_a_missing_file_is_named(name, file, spec_of, request):
    root = request.getfixturevalue(name)
    path = root / name / file
    path.unlink()
    with pytest.raises(UserError) as caught:
        load(spec_of(name), root, "test")
    assert str(caught.value).startswith(f"{path} does not exist. Fetch or draw")


@pytest.mark.parametrize(("name", "file"), EACH_FILE)
def test_a_truncated_file_is_named(name, file, spec_of, request):
    root = request.getfixturevalue(name)
    path = root / name / file
    path.write_text(path.read_text()[:-3])
    with pytest.raises(UserError) as caught:
        load(spec_of(name), root, "test")
    assert str(caught.value).startswith(f"{path} is truncated or not JSON")
    assert "Fetch or draw" in str(caught.value)


@pytest.mark.parametrize(("name", "file"), EACH_FILE)
@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "3"])
def test_json_of_another_shape_is_named(name, file, content, spec_of, request):
    root = request.getfixturevalue(name)
    path = root / name / file
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load(spec_of(name), root, "test")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "file", "old", "new"), [
    ("okvqa", "OpenEnded_mscoco_val2014_questions.json", '"image_id": 297147', '"image_id": "cat"'),
    ("textvqa", "TextVQA_0.5.1_val.json", '"answers": ["4"', '"answers": 4, "rest": ["4"'),
    ("gqa", "testdev_balanced_questions.json", '"types": {', '"types": null, "rest": {'),
    ("flickr30k", "dataset_flickr30k.json", '"raw": "Caption 3 of', '"raw": 3, "rest": "'),
])
def test_values_of_another_type_are_no_traceback(name, file, old, new, spec_of, request):
    root = request.getfixturevalue(name)
    path = root / name / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"{root / name}.*[Ff]etch"):
        load(spec_of(name), root, "test")


def without(value, key):
    """Return JSON without a key, wherever it occurs."""
    if isinstance(value, dict):
        return {name: without(each, key) for name, each in value.items() if name != key}
    return [without(each, key) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys])
def test_a_missing_key_is_named(name, key, spec_of, request):
    root = request.getfixturevalue(name)
    for file in FILES[name]:
        path = root / name / file
        path.write_text(json.dumps(without(json.loads(path.read_text()), key)))
    with pytest.raises(UserError, match=f"lacks the key '{key}'") as caught:
        load(spec_of(name), root, "test")
    assert any(str(root / name / file) in str(caught.value) for file in FILES[name])


def test_a_data_set_without_items_is_an_error(tmp_path):
    spec = dataclasses.replace(request([], grid=False).datasets["gqa"], counts={})
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "testdev_balanced_questions.json").write_text("{}")
    with pytest.raises(UserError, match=r"gqa/test has no items in .*gqa\. Fetch or draw the dataset again"):
        load(spec, tmp_path, "test")


@pytest.mark.parametrize(("changes", "reason"), [
    ({"imageId": "../../../secret"}, r"question 7 has imageId=.*secret.*: an id that is a path is refused"),
    ({"imageId": "/etc/passwd"}, "an id that is a path is refused"),
    ({"question": "\ud800?"}, "Item 7 of gqa/test has text that is not valid Unicode"),
])
def test_ids_that_are_paths_and_halves_of_characters(tmp_path, changes, reason):
    spec = dataclasses.replace(request([], grid=False).datasets["gqa"], counts={})
    (tmp_path / "data" / "gqa").mkdir(parents=True)
    entry = {"question": "what?", "answer": "a", "imageId": "1", "types": {"detailed": "x"}, **changes}
    (tmp_path / "data" / "gqa" / "testdev_balanced_questions.json").write_text(json.dumps({"7": entry}))
    with pytest.raises(UserError, match=reason):
        load(spec, tmp_path / "data", "test")


class Own:
    """A reader of a user's own, as a module."""

    __file__ = __file__

    def __init__(self, made):
        self.made = made

    def load(self, root, split, spec):
        return self.made()


@pytest.mark.parametrize(("changes", "reason"), [
    ({"references": "cat"}, "references='cat', expected a tuple of strings"),
    ({"references": (3,)}, r"references=\(3,\), expected a tuple of strings"),
    ({"references": ()}, "cannot be scored: the metric exact_lower needs at least one reference"),
    ({"target": 3}, "target=3, expected text"), ({"prompt": None}, "prompt=None, expected text"),
    ({"image": "a.png"}, "image='a.png', expected a pathlib.Path"), ({"options": "ab"}, "options='ab'"),
    ({"group": 7}, "group=7, expected text"),
])
def test_an_own_reader_is_held_to_the_kinds_of_a_record(tmp_path, monkeypatch, changes, reason):
    values = {"id": "own", "prompt": "", "metric": "exact_lower", "splits": {}, "counts": {}}
    spec = SimpleNamespace(**values, options={"reader": "own.reader"})
    monkeypatch.setitem(sys.modules, "own", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "own.reader", Own(lambda: [record("1", **changes)]))
    with pytest.raises(UserError, match=reason):
        load(spec, tmp_path, "test")


def test_what_fails_in_an_own_reader_is_told_with_its_line(tmp_path, monkeypatch):
    spec = SimpleNamespace(id="own", prompt="", metric="gqa", splits={}, counts={}, options={"reader": "own.reader"})
    monkeypatch.setitem(sys.modules, "own", SimpleNamespace())
    for made, reason in {
        lambda: [].pop(): r"IndexError: pop from empty list \(.*test_record\.py, line \d+\)",
        lambda: None: "returned NoneType for test", lambda: [{}]: "returned dict for test",
    }.items():
        monkeypatch.setitem(sys.modules, "own.reader", Own(made))
        with pytest.raises(UserError, match=reason):
            load(spec, tmp_path, "test")


@pytest.mark.parametrize(("dataset", "file", "change", "reason"), [
    ("textvqa", "TextVQA_0.5.1_val.json", lambda c: c["data"][0].update(answers="abcdefghij"), "expected a list"),
    ("textvqa", "TextVQA_0.5.1_val.json", lambda c: c["data"][0].update(answers=["a"] * 9), "the question has 9"),
    ("textvqa", "TextVQA_0.5.1_val.json", lambda c: c["data"][0].update(answers=[None] * 10), "null"),
    ("gqa", "testdev_balanced_questions.json", lambda c: next(iter(c.values())).update(answer=None), "null"),
    ("okvqa", "mscoco_val2014_annotations.json",
     lambda c: c["annotations"][0]["answers"][0].update(answer=None), "null"),
    ("ocrvqa", "dataset.json", lambda c: [b.update(answers="ab", questions="ab") for b in c.values()], "is text 'ab'"),
    ("coco", "dataset_coco.json", lambda c: [i["sentences"][0].update(raw=3) for i in c["images"]], "a number 3"),
    ("scienceqa", "problems.json", lambda c: [p.update(choices="ab") for p in c.values()], "choices 'ab'"),
    ("scienceqa", "problems.json", lambda c: [p.update(hint=None) for p in c.values()], "hint=null"),
])
def test_a_readers_own_files_are_held_to_their_kinds(request, spec_of, dataset, file, change, reason):
    root = request.getfixturevalue(dataset)
    (path,) = (root / dataset).rglob(file)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        load(spec_of(dataset), root, "test")
