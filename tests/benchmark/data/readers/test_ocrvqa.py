"""OCR-VQA: official files to records."""

from __future__ import annotations

import json

import pytest

from benchmark.core.errors import UserError
from benchmark.data import load, open_image


def test_records(ocrvqa, spec_of):
    records = load(spec_of("ocrvqa"), ocrvqa, "test")
    assert [record.item_id for record in records] == [f"1623439671_{index}" for index in range(5)]
    assert records[0].prompt == (
        "What is the title of this book?\nAnswer the question using a single word or phrase."
    )
    assert [(record.meta["question_type"], record.target) for record in records] == [
        ("title", "Doug the Pug"), ("author", "Leslie Mosier"), ("genre", "Calendars"), ("yes/no", "No"),
        ("year", "2016"),
    ]
    assert records[3].references == ("No",)
    assert {record.group for record in records} == {"1623439671"}


def test_a_gif_behind_the_official_jpg_is_found(ocrvqa, spec_of):
    record = load(spec_of("ocrvqa"), ocrvqa, "test")[0]
    assert record.image.name == "1623439671.jpg" and not record.image.exists()
    image = open_image(record)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (0, 0, 255)


def test_splits_by_number(ocrvqa, spec_of):
    assert [record.item_id for record in load(spec_of("ocrvqa"), ocrvqa, "train")] == ["0761183272_0"]
    with pytest.raises(UserError, match="ocrvqa/validation has no items"):
        load(spec_of("ocrvqa"), ocrvqa, "validation")


def test_fewer_answers_than_questions(ocrvqa, spec_of):
    path = ocrvqa / "ocrvqa" / "dataset.json"
    books = json.loads(path.read_text())
    books["1623439671"]["answers"].pop()
    path.write_text(json.dumps(books))
    with pytest.raises(UserError, match="book 1623439671 has 5 questions, 4 answers"):
        load(spec_of("ocrvqa"), ocrvqa, "test")
