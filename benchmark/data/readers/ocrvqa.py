"""OCR-VQA: questions about book covers, one answer each (Mishra et al. 2019).

Files below ocrvqa/: dataset.json (split 1 train, 2 validation, 3 test), images/<book id>.jpg (some are .gif).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.layout import FIX, need, one_name, read_json, render
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

SPLITS = {"train": 1, "validation": 2, "test": 3}


def load(root: Path, split: str, spec: DatasetLike) -> list[Record]:
    """Read a split; a book with five questions gives five records, item id '<book id>_<index>'.

    Args:
        root: data folder.
        split: train, validation or test.
        spec: prompt fields: question.

    Returns:
        Records in file order.

    Raises:
        UserError: the file or a key is missing, or a book has more questions than answers.
    """
    folder, name = root / "ocrvqa", one_name(spec, split, SPLITS)
    path = folder / "dataset.json"
    books = read_json(path)
    if not isinstance(books, dict):
        raise UserError(f"{path} holds a {type(books).__name__}, expected an object keyed by book id. {FIX}")
    records = []
    for book, entry in books.items():
        where = f"book {book}"
        if str(need(entry, "split", path, where)) != name:
            continue
        questions, answers = (check.texts(entry, key, path, where, least=0) for key in ("questions", "answers"))
        if len(questions) != len(answers):
            raise UserError(f"{path}: {where} has {len(questions)} questions, {len(answers)} answers. {FIX}")
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            records.append(Record(
                item_id=f"{book}_{index}",
                dataset=spec.id,
                split=split,
                image=folder / "images" / f"{book}.jpg",
                prompt=render(spec, question=question),
                target=answer,
                references=(answer,),
                options=None,
                group=book,
                meta={
                    "question": question,
                    "question_type": _kind(answer, entry),
                    "question_id": f"{book}_{index}",
                    "image_id": book,
                },
            ))
    return records


def _kind(answer: str, entry: dict[str, Any]) -> str:
    """Infer what a question is about by comparing its answer with the book's fields."""
    if answer.lower() in ("yes", "no"):
        return "yes/no"
    for field, kind in (("title", "title"), ("authorName", "author"), ("genre", "genre")):
        if answer == entry.get(field):
            return kind
    return "year" if answer.isdigit() and len(answer) == 4 else "other"
