"""Tiny hand-written data sets in the official layouts, and specs with the shipped prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"


@dataclass(frozen=True)
class Spec:
    """A stand-in for benchmark.spec.DatasetSpec with the fields that the readers use."""

    id: str
    prompt: str
    metric: str
    splits: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def write(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6)) -> Path:
    """Write an image of one colour, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def spec_of() -> Callable[..., Spec]:
    """Return a function: data set id, changes -> Spec with prompt and metric of conf/dataset/<id>.yaml."""
    def make(name: str, **changes: Any) -> Spec:
        shipped = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
        return Spec(**({key: shipped[key] for key in ("id", "prompt", "metric")} | changes))

    return make


@pytest.fixture
def okvqa(tmp_path: Path) -> Path:
    """One training question and two test questions about one image."""
    def answers(*given: str) -> list[dict[str, Any]]:
        return [
            {"answer_id": number, "raw_answer": answer + "s", "answer_confidence": "yes", "answer": answer}
            for number, answer in enumerate(given, start=1)
        ]

    for name, questions in {
        "train2014": [(51606, 516065, "What is the hairstyle of the blond called?", ["pony tail"] * 10)],
        "val2014": [
            (297147, 2971475, "What sport can you use this for?",
             ["race"] * 6 + ["motocross"] * 2 + ["ride"] * 2),
            (297147, 2971476, "Who rides it?", ["rider"] * 4 + ["biker"] * 4 + ["man"] * 2),
        ],
    }.items():
        write(tmp_path / "okvqa" / f"OpenEnded_mscoco_{name}_questions.json", {
            "info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": name, "license": {},
            "questions": [
                {"image_id": image, "question": text, "question_id": number}
                for image, number, text, _ in questions
            ],
        })
        write(tmp_path / "okvqa" / f"mscoco_{name}_annotations.json", {"annotations": [
            {"image_id": image, "answer_type": "other", "question_type": "four", "question_id": number,
             "answers": answers(*given), "confidence": 3}
            for image, number, _, given in reversed(questions)
        ]})
        for image, *_ in questions:
            picture(tmp_path / "okvqa" / name / f"COCO_{name}_{image:012d}.jpg")
    return tmp_path


@pytest.fixture
def textvqa(tmp_path: Path) -> Path:
    """Two test questions about two images, one of them without OCR tokens."""
    folder = tmp_path / "textvqa"
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [
        {"question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901",
         "question_id": 34602, "image_classes": ["Camera"], "set_name": "val",
         "answers": ["nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota", "dakota",
                     "dakota digital", "dakota digital", "dakota", "dakota"]},
        {"question": "what number is on the door?", "image_id": "0054c91397f2fe05", "question_id": 34603,
         "image_classes": [], "set_name": "val", "answers": ["4"] * 10},
    ]})
    write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [
        {"image_id": "0054c91397f2fe05", "ocr_tokens": [], "ocr_info": []},
        {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL", "Single-Use"], "ocr_info": []},
    ]})
    for image in ("003a8ae2ef43b901", "0054c91397f2fe05"):
        picture(folder / "train_images" / f"{image}.jpg")
    return tmp_path


@pytest.fixture
def ocrvqa(tmp_path: Path) -> Path:
    """A training book, a test book with five questions whose cover is a .gif."""
    folder = tmp_path / "ocrvqa"
    write(folder / "dataset.json", {
        "0761183272": {
            "imageURL": "http://x/1.jpg",
            "questions": ["Who wrote this book?"],
            "answers": ["Sandra Boynton"],
            "title": "Mom's Family Wall Calendar 2016", "authorName": "Sandra Boynton", "genre": "Calendars",
            "split": 1,
        },
        "1623439671": {
            "imageURL": "http://x/2.gif",
            "questions": ["What is the title of this book?", "Who is the author of this book?",
                          "What type of book is this?", "Is this a sci-fi book?", "Which year is printed?"],
            "answers": ["Doug the Pug", "Leslie Mosier", "Calendars", "No", "2016"],
            "title": "Doug the Pug", "authorName": "Leslie Mosier", "genre": "Calendars", "split": 3,
        },
    })
    picture(folder / "images" / "0761183272.jpg")
    picture(folder / "images" / "1623439671.gif", "blue")
    return tmp_path


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    """Two test questions about one scene."""
    def entry(question: str, answer: str, full: str, *types: str) -> dict[str, Any]:
        return {
            "imageId": "n161313", "question": question, "answer": answer, "fullAnswer": full,
            "isBalanced": True,
            "types": dict(zip(("structural", "semantic", "detailed"), types, strict=True)), "groups": {},
        }

    write(tmp_path / "gqa" / "testdev_balanced_questions.json", {
        "201307251": entry("Is it overcast?", "no", "No, it is clear.", "verify", "global", "weatherVerify"),
        "201640614": entry("Who wears the dress?", "woman", "The woman.", "query", "rel", "relS"),
    })
    picture(tmp_path / "gqa" / "images" / "n161313.jpg")
    return tmp_path


def sentences(*captions: str) -> list[dict[str, Any]]:
    """Return captions as Karpathy's files hold them."""
    return [
        {"tokens": caption.lower().rstrip(".").split(), "raw": caption, "imgid": 0, "sentid": number}
        for number, caption in enumerate(captions)
    ]


@pytest.fixture
def flickr30k(tmp_path: Path) -> Path:
    """Three training images, one validation and one test image, five captions each."""
    splits = ("train", "train", "train", "val", "test")
    images = [
        {"sentids": list(range(5)), "imgid": number, "split": split, "filename": f"10{number}.jpg",
         "sentences": sentences(*(f"Caption {position} of  image {number}.\n" for position in range(5)))}
        for number, split in enumerate(splits)
    ]
    write(tmp_path / "flickr30k" / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    for image in images:
        picture(tmp_path / "flickr30k" / "flickr30k-images" / image["filename"])
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A train, a restval and a test image."""
    images = [
        {"filepath": "train2014", "filename": "COCO_train2014_000000000009.jpg", "cocoid": 9, "imgid": 0,
         "split": "train", "sentids": [0, 1], "sentences": sentences("A cat.", "One cat sits.")},
        {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "imgid": 1,
         "split": "restval", "sentids": [2], "sentences": sentences("A dog.")},
        {"filepath": "val2014", "filename": "COCO_val2014_000000000073.jpg", "cocoid": 73, "imgid": 2,
         "split": "test", "sentids": [3, 4], "sentences": sentences("A red bike.", "A bicycle in red.")},
    ]
    write(tmp_path / "coco" / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for image in images:
        picture(tmp_path / "coco" / image["filepath"] / image["filename"])
    return tmp_path


@pytest.fixture
def iconqa(tmp_path: Path) -> Path:
    """One test problem with three options, and one of another sub-task that must not be read."""
    folder = tmp_path / "iconqa" / "iconqa_data"
    problem = {"question": "What is the shape?", "choices": ["circle", "square", "2"], "answer": 1,
               "ques_type": "choose_txt", "grade": "prekindergarten", "label": "S1"}
    write(folder / "problems.json", {"35254": problem, "7": problem | {"ques_type": "choose_img"}})
    write(folder / "pid_splits.json", {
        "choose_txt_test": ["35254"], "choose_img_test": ["7"], "choose_txt_val": [],
    })
    write(folder / "iconqa" / "test" / "choose_txt" / "35254" / "data.json", problem)
    picture(folder / "iconqa" / "test" / "choose_txt" / "35254" / "image.png")
    return tmp_path


@pytest.fixture
def scienceqa(tmp_path: Path) -> Path:
    """A test problem with a hint and an image, one with neither."""
    folder = tmp_path / "scienceqa"
    common = {"task": "closed choice", "grade": "grade4", "category": "c", "skill": "s",
              "lecture": "", "solution": ""}
    write(folder / "problems.json", {
        "4": common | {"question": "Which ocean is highlighted?", "answer": 2, "hint": "Look at the map.",
                       "choices": ["the Arctic Ocean", "the Indian Ocean", "the Pacific Ocean"],
                       "image": "image.png", "subject": "social science", "topic": "geography",
                       "split": "test"},
        "5": common | {"question": "Is ice a solid?", "answer": 0, "hint": "", "choices": ["yes", "no"],
                       "image": None, "subject": "natural science", "topic": "chemistry", "split": "test"},
    })
    write(folder / "pid_splits.json", {"train": [], "val": [], "test": ["4", "5"], "minitest": ["4"]})
    picture(folder / "images" / "test" / "4" / "image.png")
    return tmp_path
