"""Flickr30k: Karpathy's file to records, and which caption is trained on."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.data import load
from benchmark.data.readers.captions import sampled


def test_evaluation_has_one_record_per_image(flickr30k, spec_of):
    (record,) = load(spec_of("flickr30k"), flickr30k, "test")
    assert record.prompt == "Write a short description for the image."
    assert record.item_id == record.group == "4"
    assert record.references == tuple(f"Caption {position} of image 4." for position in range(5)), "one space"
    assert record.image == flickr30k / "flickr30k" / "flickr30k-images" / "104.jpg"
    assert record.target in record.references


def test_training_has_one_seeded_caption_per_image(flickr30k, spec_of):
    records = load(spec_of("flickr30k"), flickr30k, "train")
    assert [record.group for record in records] == ["0", "1", "2"]
    for record in records:
        (position,) = sampled(record.references, record.group, 1, seed=0)
        assert record.target == record.references[position]
        assert record.item_id == f"{record.group}_{position}"
    assert records == load(spec_of("flickr30k"), flickr30k, "train")


def test_another_seed_chooses_other_captions():
    captions = ["a", "b", "c", "d", "e"]
    chosen = [[sampled(captions, str(image), 1, seed)[0] for image in range(400)] for seed in (0, 1)]
    assert chosen[0] != chosen[1]
    for position in range(5):
        assert 50 <= chosen[0].count(position) <= 110, "every position is chosen about equally often"


@pytest.mark.parametrize(("count", "expected"), [(2, 6), (5, 15), (9, 15)])
def test_more_captions_per_image(flickr30k, spec_of, count, expected):
    records = load(spec_of("flickr30k", options={"captions_per_image": count}), flickr30k, "train")
    assert len(records) == expected
    one = {record.item_id for record in load(spec_of("flickr30k"), flickr30k, "train")}
    assert one <= {record.item_id for record in records}, "more captions include the one"
    assert len(load(spec_of("flickr30k", options={"captions_per_image": count}), flickr30k, "test")) == 1


@pytest.mark.parametrize("count", [0, "two"])
def test_no_count_of_captions(flickr30k, spec_of, count):
    with pytest.raises(UserError, match=f"captions_per_image={count!r} of flickr30k is not a count"):
        load(spec_of("flickr30k", options={"captions_per_image": count}), flickr30k, "train")
