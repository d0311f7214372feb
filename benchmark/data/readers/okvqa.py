"""OK-VQA: questions that need outside knowledge, ten answers each (Marino et al. 2019).

Files below okvqa/: OpenEnded_mscoco_<name>_questions.json, mscoco_<name>_annotations.json,
<name>/COCO_<name>_<12 digits>.jpg. The official set has two splits; a spec may map a third to a name of its choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.layout import FIX, commonest, need, one_name, read_json, render
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

SPLITS = {"train": "train2014", "test": "val2014"}


def load(root: Path, split: str, spec: DatasetLike) -> list[Record]:
    """Read a split; the target is the annotators' most frequent answer.

    Args:
        root: data folder.
        split: train, validation or test.
        spec: prompt fields: question.

    Returns:
        Records in the order of the question file.

    Raises:
        UserError: a file or key is missing, or a question has no annotation.
    """
    folder, name = root / "okvqa", one_name(spec, split, SPLITS)
    question_file = folder / f"OpenEnded_mscoco_{name}_questions.json"
    annotation_file = folder / f"mscoco_{name}_annotations.json"
    annotations = {
        need(entry, "question_id", annotation_file, f"annotation {number}"): entry
        for number, entry in enumerate(need(read_json(annotation_file), "annotations", annotation_file))
    }
    records = []
    for number, entry in enumerate(need(read_json(question_file), "questions", question_file)):
        number_id = need(entry, "question_id", question_file, f"question {number}")
        where = f"question {number_id}"
        if number_id not in annotations:
            raise UserError(f"{annotation_file} has no answers for {where} of {question_file.name}. {FIX}")
        annotation = annotations[number_id]
        answers = tuple(
            check.text(answer, "answer", annotation_file, f"an answer of {where}", blank=True)
            for answer in check.rows(need(annotation, "answers", annotation_file, where), annotation_file,
                                     f"answers of {where}")
        )
        if not answers:
            raise UserError(f"{annotation_file}: {where} has an empty list of answers. {FIX}")
        question = check.text(entry, "question", question_file, where, blank=True)
        check.number(entry, "image_id", question_file, where)
        image_id = entry["image_id"]
        records.append(Record(
            item_id=str(number_id),
            dataset=spec.id,
            split=split,
            image=folder / name / f"COCO_{name}_{int(image_id):012d}.jpg",
            prompt=render(spec, question=question),
            target=commonest(answers),
            references=answers,
            options=None,
            group=str(image_id),
            meta={
                "question": question,
                "question_type": annotation.get("question_type") or "",
                "question_id": number_id,
                "image_id": image_id,
            },
        ))
    return records
