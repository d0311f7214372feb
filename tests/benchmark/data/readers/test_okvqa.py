"""OK-VQA: official files to records."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.data import load


def test_records(okvqa, spec_of):
    first, second = load(spec_of("okvqa"), okvqa, "test")
    assert first.prompt == (
        "What sport can you use this for?\nAnswer the question using a single word or phrase."
    )
    assert first.item_id == "2971475" and first.dataset == "okvqa" and first.split == "test"
    assert first.references == ("race",) * 6 + ("motocross",) * 2 + ("ride",) * 2
    assert first.target == "race" and first.options is None
    assert first.image == okvqa / "okvqa" / "val2014" / "COCO_val2014_000000297147.jpg"
    assert first.group == second.group == "297147"
    assert first.meta == {
        "question": "What sport can you use this for?", "question_type": "four", "question_id": 2971475,
        "image_id": 297147,
    }
    assert second.target == "rider", "of equally frequent answers the first"


def test_train_has_its_official_name(okvqa, spec_of):
    (record,) = load(spec_of("okvqa"), okvqa, "train")
    assert record.image.name == "COCO_train2014_000000051606.jpg" and record.split == "train"


def test_the_map_of_splits_is_the_specs(okvqa, spec_of):
    spec = spec_of("okvqa", splits={"validation": "val2014", "test": "train2014"})
    assert [record.item_id for record in load(spec, okvqa, "validation")] == ["2971475", "2971476"]
    assert [record.item_id for record in load(spec, okvqa, "test")] == ["516065"]


def test_no_validation_split_officially(okvqa, spec_of):

    with pytest.raises(UserError, match="okvqa has no validation split. Choose one of train, test"):
        load(spec_of("okvqa"), okvqa, "validation")
