"""GQA: compositional questions about scenes, one answer each (Hudson and Manning 2019).

Files below gqa/: <name>_balanced_questions.json keyed by question id, images/<imageId>.jpg.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.layout import FIX, need, one_name, read_json, render
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

SPLITS = {"train": "train", "validation": "val", "test": "testdev"}


def load(root: Path, split: str, spec: DatasetLike) -> list[Record]:
    """Read a split; `options.type_key` (structural, semantic or detailed, the default) names the type to score by.

    Args:
        root: data folder.
        split: train, validation or test.
        spec: prompt fields: question.

    Returns:
        Records in file order.

    Raises:
        UserError: the file or a key is missing.
    """
    folder, name = root / "gqa", one_name(spec, split, SPLITS)
    path = folder / f"{name}_balanced_questions.json"
    questions = read_json(path)
    if not isinstance(questions, dict):
        raise UserError(
            f"{path} holds a {type(questions).__name__}, expected an object keyed by question id. {FIX}"
        )
    key = spec.options.get("type_key", "detailed")
    records = []
    for question_id, entry in questions.items():
        where = f"question {question_id}"
        question = check.text(entry, "question", path, where, blank=True)
        answer = check.text(entry, "answer", path, where, blank=True)
        image_id = check.identifier(entry, "imageId", path, where)
        types = check.mapping(need(entry, "types", path, where), path, f"types of {where}")
        records.append(Record(
            item_id=question_id,
            dataset=spec.id,
            split=split,
            image=folder / "images" / f"{image_id}.jpg",
            prompt=render(spec, question=question),
            target=answer,
            references=(answer,),
            options=None,
            group=image_id,
            meta={
                "question": question,
                "question_type": need(types, key, path, f"types of {where}"),
                "structural": types.get("structural"),
                "semantic": types.get("semantic"),
                "detailed": types.get("detailed"),
                "question_id": question_id,
                "image_id": image_id,
            },
        ))
    return records
