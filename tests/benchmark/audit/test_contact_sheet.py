"""Contact sheets: the same items each time, everything legible within its column."""

from __future__ import annotations

import pytest
from PIL import Image

from benchmark.audit.contact_sheet import GAP, SIDE, _font, _wrap, answer_lines, contact_sheet, main
from benchmark.core.errors import UserError
from benchmark.data import load


def test_a_sheet_is_written_and_always_the_same(flickr30k, spec_of, tmp_path, capsys):
    specs = {"flickr30k": spec_of("flickr30k")}
    out = tmp_path / "sheet.png"
    assert main(["flickr30k", "-n", "3", "--split", "train", "--out", str(out)], specs, flickr30k) == 0
    assert capsys.readouterr().out.strip() == str(out)
    first = out.read_bytes()
    with Image.open(out) as sheet:
        assert sheet.width == 3 * (SIDE + GAP) + GAP and sheet.height > SIDE
    main(["flickr30k", "-n", "3", "--split", "train", "--out", str(out)], specs, flickr30k)
    assert out.read_bytes() == first


def test_rows_of_four(gqa, spec_of):
    records = load(spec_of("gqa"), gqa, "test") * 3
    sheet = contact_sheet(records)
    assert sheet.width == 4 * (SIDE + GAP) + GAP and sheet.height > 2 * SIDE
    red, green, blue = sheet.getpixel((GAP + SIDE // 2, GAP + SIDE // 2))
    assert red > 240 and green < 15 and blue < 15
    last = (GAP + 3 * (SIDE + GAP) + 5, sheet.height - GAP - 5)
    assert sheet.getpixel(last) == (255, 255, 255), "six of eight places"


def test_the_default_place(gqa, spec_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["gqa", "-n", "1"], {"gqa": spec_of("gqa")}, gqa)
    with Image.open(tmp_path / "build" / "gqa-test.png") as sheet:
        assert sheet.width == SIDE + 2 * GAP, "one of the two items"


@pytest.mark.parametrize(("name", "expected"), [
    ("okvqa", ["6 x race", "2 x motocross", "2 x ride"]),
    ("gqa", ["no"]),
    ("iconqa", ["B  (square)"]),
    ("scienceqa", ["C  (the Pacific Ocean)"]),
    ("coco", ["- A red bike.", "- A bicycle in red."]),
])
def test_answers(name, expected, spec_of, request):
    assert answer_lines(load(spec_of(name), request.getfixturevalue(name), "test")[0]) == expected


def test_text_items_are_shown(scienceqa, spec_of):
    assert contact_sheet(load(spec_of("scienceqa"), scienceqa, "test")).height > SIDE


@pytest.mark.parametrize("text", ["short", "word " * 60, "x" * 300, "", "a " + "y" * 90 + " b"])
def test_lines_fit_and_lose_nothing(text):
    font = _font("normal")
    lines = _wrap(text, font)
    assert all(font.getlength(line) <= SIDE for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_unknown_data_set(gqa, spec_of):
    with pytest.raises(UserError, match="Unknown dataset 'qga'. Did you mean 'gqa'"):
        main(["qga"], {"gqa": spec_of("gqa")}, gqa)


def test_a_corrupt_image_is_named(gqa, spec_of, tmp_path):
    (gqa / "gqa" / "images" / "n161313.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="n161313.jpg"):
        main(["gqa", "--out", str(tmp_path / "x.png")], {"gqa": spec_of("gqa")}, gqa)
    assert not (tmp_path / "x.png").exists()
