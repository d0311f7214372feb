"""COCO captions: Karpathy's file to records, train with restval."""

from __future__ import annotations

from benchmark.data import load


def test_records(coco, spec_of):
    (record,) = load(spec_of("coco"), coco, "test")
    assert record.prompt == "Provide a one-sentence caption for the provided image."
    assert record.item_id == record.group == "73", "the COCO id, not the position in Karpathy's file"
    assert record.references == ("A red bike.", "A bicycle in red.")
    assert record.image == coco / "coco" / "val2014" / "COCO_val2014_000000000073.jpg"


def test_training_is_train_and_restval(coco, spec_of):
    records = load(spec_of("coco"), coco, "train")
    assert [record.group for record in records] == ["9", "42"]
    assert [record.image.parent.name for record in records] == ["train2014", "val2014"]
    assert records[1].target == "A dog."


def test_the_spec_may_leave_restval_out(coco, spec_of):
    assert [r.group for r in load(spec_of("coco", splits={"train": "train"}), coco, "train")] == ["9"]
