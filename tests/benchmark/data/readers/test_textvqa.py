"""TextVQA: official files to records, with and without OCR tokens."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.data import load


def test_records(textvqa, spec_of):
    camera, door = load(spec_of("textvqa"), textvqa, "test")
    assert camera.prompt == (
        "what is the brand of this camera?\n"
        "Reference OCR token: DAKOTA, DIGITAL, Single-Use\n"
        "Answer the question using a single word or phrase."
    )
    assert door.prompt == (
        "what number is on the door?\n"
        "Reference OCR token: \n"
        "Answer the question using a single word or phrase."
    )
    assert camera.item_id == "34602" and camera.group == "003a8ae2ef43b901"
    assert camera.target == "dakota" and len(camera.references) == 10
    assert camera.image == textvqa / "textvqa" / "train_images" / "003a8ae2ef43b901.jpg"
    assert camera.meta["ocr_tokens"] == ["DAKOTA", "DIGITAL", "Single-Use"]


def test_without_ocr_the_line_goes_and_the_file_is_not_needed(textvqa, spec_of):
    (textvqa / "textvqa" / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    expected = "what is the brand of this camera?\nAnswer the question using a single word or phrase."
    switched = spec_of("textvqa", options={"ocr_tokens": False})
    assert load(switched, textvqa, "test")[0].prompt == expected
    variant = spec_of("textvqa_no_ocr", options={"reader": "textvqa", "ocr_tokens": False})
    record = load(variant, textvqa, "test")[0]
    assert (record.prompt, record.dataset) == (expected, "textvqa_no_ocr")


def test_an_image_without_ocr_entry_is_named(textvqa, spec_of):
    path = textvqa / "textvqa" / "TextVQA_Rosetta_OCR_v0.2_val.json"
    path.write_text('{"data": []}')
    with pytest.raises(UserError, match="has no entry for image 003a8ae2ef43b901"):
        load(spec_of("textvqa"), textvqa, "test")
