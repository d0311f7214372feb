"""ScienceQA: official files to records, with and without an image."""

from __future__ import annotations

import pytest

from benchmark.data import load, open_image


def test_records(scienceqa, spec_of):
    ocean, ice = load(spec_of("scienceqa"), scienceqa, "test")
    assert ocean.prompt == (
        "Context: Look at the map.\n"
        "Which ocean is highlighted?\n"
        "A. the Arctic Ocean\n"
        "B. the Indian Ocean\n"
        "C. the Pacific Ocean\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert ice.prompt == (
        "Is ice a solid?\nA. yes\nB. no\nAnswer with the option's letter from the given choices directly."
    )
    assert ocean.target == "C" and ocean.references == ("C",) and ice.target == "A"
    assert ocean.options == ("the Arctic Ocean", "the Indian Ocean", "the Pacific Ocean")
    assert ocean.image == scienceqa / "scienceqa" / "images" / "test" / "4" / "image.png"
    assert (ocean.meta["question_type"], ice.meta["question_type"]) == ("image", "text")
    assert ocean.meta["subject"] == "social science"


def test_text_only_items_have_no_image(scienceqa, spec_of):
    ice = load(spec_of("scienceqa"), scienceqa, "test")[1]
    assert ice.image is None and ice.meta["image_id"] is None
    with pytest.raises(ValueError, match="item 5 of scienceqa has no image"):
        open_image(ice)
