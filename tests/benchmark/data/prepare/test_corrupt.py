"""Broken files of strangers: each gives one message that names file, row and reason, and leaves no dataset behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.data.prepare import main
from tests.real_layouts import overrides

FILES = {
    "okvqa": ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    "textvqa": ("TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"),
    "ocrvqa": ("dataset.json",), "gqa": ("testdev_balanced_questions.json",),
    "flickr30k": ("dataset_flickr30k.json",), "coco": ("dataset_coco.json",),
    "iconqa": ("problems.json", "pid_splits.json"), "scienceqa": ("problems.json", "pid_splits.json"),
}

# What can be wrong with a file as a whole: name -> (from its bytes to broken ones, the reason in the message).
WHOLE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[: len(data) // 2], "is truncated or not JSON"),
    "empty": (lambda data: b"", "is truncated or not JSON"),
    "latin-1": (lambda data: data[:20] + "é".encode("latin-1") + data[20:], r"is not UTF-8 \(byte 20 is 0xe9\)"),
    "another top level": (lambda data: b"[1]", r"the file is a list \[1\], expected an object"),
    "a key twice": (lambda data: b'{"a": 1, "a": 2, ' + data.lstrip()[1:], "the key 'a' occurs twice in one object"),
}


def cases_whole() -> list[Any]:
    return [
        pytest.param(name, file, change, reason, id=f"{name}-{file}-{what}")
        for name, files in FILES.items() for file in files for what, (change, reason) in WHOLE.items()
        # OCR-VQA's file is told from another dataset.json by its first bytes, so a foreign one is simply not it.
        if not (name == "ocrvqa" and what in ("empty", "another top level"))
    ]


def first(content: Any, dataset: str) -> Any:
    """Return the first row that the small suite uses."""
    if dataset == "okvqa":
        return content.get("questions", content.get("annotations"))[0]
    if dataset == "textvqa":
        return content["data"][0]
    if dataset in ("flickr30k", "coco"):
        return next(entry for entry in content["images"] if entry["split"] == "test")
    if dataset == "ocrvqa":
        return next(book for book in content.values() if book["split"] == 3)
    return next(entry for key, entry in content.items() if dataset == "gqa" or key.startswith("3"))


def put(key: str, value: Any) -> Callable[[Any], None]:
    return lambda row: row.__setitem__(key, value)


def drop(key: str) -> Callable[[Any], None]:
    return lambda row: row.__delitem__(key)


# dataset, file number, what is done to the first row, reason (with the row) in the message.
ROWS: list[tuple[str, int, Callable[[Any], None], str]] = [
    ("okvqa", 0, drop("question_id"), "question 0 lacks the key 'question_id'"),
    ("okvqa", 0, drop("question"), r"question \d+ lacks the key 'question'"),
    ("okvqa", 0, put("question", 5), r"question \d+ has question=a number 5, expected text"),
    ("okvqa", 0, put("question", "  "), r"question \d+ has an empty question"),
    ("okvqa", 0, put("image_id", "x1"), r"question \d+ has image_id='x1', expected a whole number"),
    ("okvqa", 0, put("image_id", None), r"question \d+ has image_id=null, expected an id"),
    ("okvqa", 0, put("image_id", "../../etc/passwd"), r"question \d+ .* an id that is a path is refused"),
    ("okvqa", 0, put("question_id", 17), "has no answers for question 17"),
    ("okvqa", 1, put("answers", []), r"question \d+ has an empty list of answers"),
    ("okvqa", 1, put("answers", "yes"), r"answers of question \d+ is text 'yes', expected a list"),
    ("okvqa", 1, put("answers", [{"answer": 3}]), r"an answer of question \d+ has answer=a number 3"),
    ("okvqa", 1, put("answers", [{"raw_answer": "x"}]), r"an answer of question \d+ lacks the key 'answer'"),
    ("okvqa", 1, drop("question_id"), "annotation 0 lacks the key 'question_id'"),
    ("textvqa", 0, drop("answers"), r"question \d+ lacks the key 'answers'"),
    ("textvqa", 0, put("answers", [1, 2]), r"answers of question \d+ holds a number 1, expected strings"),
    ("textvqa", 0, put("answers", []), r"answers of question \d+ has 0 entries"),
    ("textvqa", 0, put("question", None), r"question \d+ has question=null"),
    ("textvqa", 0, put("image_id", "nowhere"), r"has no entry for image nowhere \(question \d+ of "),
    ("textvqa", 0, put("question_id", True), "entry 0 has question_id=a truth value True, expected an id"),
    ("textvqa", 1, put("ocr_tokens", None), r"ocr_tokens of image \w+ is null, expected a list"),
    ("textvqa", 1, put("ocr_tokens", [["a"]]), r"ocr_tokens of image \w+ holds a list"),
    ("ocrvqa", 0, put("questions", ["one?"] * 9), r"book \d+ has 9 questions, 2 answers"),
    ("ocrvqa", 0, put("questions", "one?"), r"questions of book \d+ is text 'one\?', expected a list"),
    ("ocrvqa", 0, drop("answers"), r"book \d+ lacks the key 'answers'"),
    ("ocrvqa", 0, drop("split"), r"book \d+ lacks the key 'split'"),
    ("ocrvqa", 0, put("title", ["x"]), r"book \d+ has title=a list"),
    ("gqa", 0, drop("answer"), r"question \d+ lacks the key 'answer'"),
    ("gqa", 0, put("answer", ["no"]), r"question \d+ has answer=a list \['no'\], expected text"),
    ("gqa", 0, put("imageId", None), r"question \d+ has imageId=null"),
    ("gqa", 0, put("imageId", "a/b"), r"question \d+ has imageId='a/b': an id that is a path is refused"),
    ("gqa", 0, put("types", "query"), r"types of question \d+ is text 'query', expected an object"),
    ("flickr30k", 0, put("sentences", []), r"image \d+ has no captions"),
    ("flickr30k", 0, put("sentences", [{"raw": 5}]), r"a sentence of image \d+ has raw=a number 5"),
    ("flickr30k", 0, put("sentences", [{"tokens": []}]), r"a sentence of image \d+ lacks the key 'raw'"),
    ("flickr30k", 0, put("filename", "../1.jpg"), r"image \d+ has filename='../1.jpg'"),
    ("flickr30k", 0, drop("imgid"), r"image \d+ lacks the key 'imgid'"),
    ("coco", 0, drop("split"), r"image \d+ lacks the key 'split'"),
    ("coco", 0, drop("filepath"), r"image \d+ lacks the key 'filepath'"),
    ("coco", 0, put("cocoid", 1.5), r"image \d+ has cocoid=a number 1.5, expected an id"),
    ("iconqa", 0, put("choices", []), r"problem \d+ has answer \d but 0 choices"),
    ("iconqa", 0, put("answer", 9), r"problem \d+ has answer 9 but \d choices"),
    ("iconqa", 0, put("answer", "B"), r"problem \d+ has answer 'B' but \d choices"),
    ("iconqa", 0, put("answer", True), r"problem \d+ has answer True but \d choices"),
    ("iconqa", 0, put("choices", [None, "x"]), r"choices of problem \d+ holds \[None, 'x'\]"),
    ("iconqa", 0, drop("question"), r"problem \d+ lacks the key 'question'"),
    ("scienceqa", 0, put("hint", 7), r"problem \d+ has hint=a number 7, expected text"),
    ("scienceqa", 0, put("answer", -1), r"problem \d+ has answer -1 but \d choices"),
    ("scienceqa", 0, put("image", 1), r"problem \d+ has image=a number 1, expected text"),
    ("scienceqa", 0, put("choices", {"A": "x"}), r"choices of problem \d+ is an object"),
]


def broken(drawn: Path, out: Path, name: str) -> Path:
    """Copy a dataset's annotation files and return the folder."""
    shutil.copytree(drawn / name, out / name, ignore=shutil.ignore_patterns("*.jpg", "*.png", "*.gif", "data.json"))
    return out / name


def refusal(name: str, source: Path, root: Path) -> str:
    """Prepare one dataset, which must fail; return the message."""
    specs = request(overrides(), grid=False).datasets
    with pytest.raises(UserError) as caught:
        main(["--no-hub", f"--from={name}={source}", name], specs, root)
    text = str(caught.value)
    assert text.count("\n") == 1 and text.startswith("1 of 1 dataset is not prepared"), text
    assert not (root / name).exists() and not list(root.rglob("*.json"))
    return text.split("\n")[1]


@pytest.mark.parametrize(("name", "file", "change", "reason"), cases_whole())
def test_a_broken_file(drawn, tmp_path, name, file, change, reason):
    source = broken(drawn, tmp_path / "source", name)
    path = next(source.rglob(file))
    path.write_bytes(change(path.read_bytes()))
    text = refusal(name, source, tmp_path / "data")
    assert str(path) in text and re.search(reason, text), text


@pytest.mark.parametrize(("name", "number", "change", "reason"), ROWS, ids=[f"{r[0]}-{n}" for n, r in enumerate(ROWS)])
def test_a_broken_row(drawn, tmp_path, name, number, change, reason):
    source = broken(drawn, tmp_path / "source", name)
    path = next(source.rglob(FILES[name][number]))
    content = json.loads(path.read_text())
    change(first(content, name))
    path.write_text(json.dumps(content))
    text = refusal(name, source, tmp_path / "data")
    assert path.name in text and re.search(reason, text), text


@pytest.mark.parametrize(("name", "number", "where", "what"), [
    ("okvqa", 0, "questions", "question"), ("okvqa", 1, "annotations", "question"), ("textvqa", 0, "data", "question"),
    ("flickr30k", 0, "images", "image"), ("coco", 0, "images", "image"),
    ("iconqa", 1, "choose_txt_test", "problem"), ("scienceqa", 1, "test", "problem"),
])
def test_an_id_that_occurs_twice(drawn, tmp_path, name, number, where, what):
    source = broken(drawn, tmp_path / "source", name)
    path = next(source.rglob(FILES[name][number]))
    content = json.loads(path.read_text())
    content[where].append(content[where][-1])
    path.write_text(json.dumps(content))
    assert re.search(rf"{path.name}: {what} \d+ occurs twice", refusal(name, source, tmp_path / "data"))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda line: line[:-9], "line 3 is truncated or not JSON"),
    (lambda line: "[]", r"line 3 is a list \[\], expected an object"),
    (lambda line: line.replace('"answer"', '"reply"'), "line 3 lacks the key 'answer'"),
    (lambda line: line.replace("single word or phrase.", "single word."), "line 3 does not end with 'Answer the"),
    (lambda line: line.replace('"image"', '"picture"'), "line 3 lacks the key 'image'"),
])
def test_a_broken_line_of_the_groups_file(group, tmp_path, change, reason):
    source = tmp_path / "source"
    source.mkdir()
    lines = (group / "ocrvqa" / "sampled_ocrvqa_test.jsonl").read_text().split("\n")
    lines[2] = change(lines[2])
    (source / "sampled_ocrvqa_test.jsonl").write_text("\n".join(lines))
    text = refusal("ocrvqa", source, tmp_path / "data")
    assert "sampled_ocrvqa_test.jsonl: " in text and re.search(reason, text), text


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
@pytest.mark.parametrize("name", ["gqa", "coco"])
def test_a_bad_image(drawn, tmp_path, name, content):
    shutil.copytree(drawn / name, tmp_path / "source")
    path = sorted((tmp_path / "source").rglob("*n300000*.jpg" if name == "gqa" else "COCO_val2014_*3000*.jpg"))[0]
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    specs = request(overrides(), grid=False).datasets
    message = rf"1 of \d+ images cannot be read:\n.*{path.name} \(item \w+ of {name}/test\): "
    with pytest.raises(UserError, match=message):
        main(["--no-hub", f"--from={name}={tmp_path / 'source'}", name], specs, tmp_path / "data")
    assert not (tmp_path / "data" / name / "prepared.json").exists()


def test_there_are_a_hundred_of_them():
    assert len(cases_whole()) + len(ROWS) + 7 + 5 + 6 >= 100
