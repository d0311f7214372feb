"""The common form of all sources, and the official files that are written from it.

A source yields rows per official split. The same content gives the same files byte for byte, whatever the source: rows
are sorted by id, and only the fields that the readers use are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmark.core.files import write_atomic


class Stored(Protocol):
    """An image inside a table. Its undecoded bytes are read on demand."""

    def read(self) -> bytes:
        """Return the undecoded bytes."""


@dataclass(frozen=True)
class Row:
    """One question, book, photograph or problem.

    Attributes:
        id: the official id; unique in its split.
        image: name of its image file; None for an item without an image.
        fields: the official fields, see `FIELDS`.
        stored: the image's bytes in a table, if the image is not a file.
    """

    id: str
    image: str | None
    fields: Mapping[str, Any]
    stored: Stored | None = None


Splits = Mapping[str, Sequence[Row]]  # official name of a split -> its rows

FIELDS = {
    "okvqa": ("question", "answers", "question_type"),
    "textvqa": ("question", "answers", "ocr_tokens"),
    "ocrvqa": ("questions", "answers", "title", "authorName", "genre"),
    "gqa": ("question", "answer", "types"),
    "flickr30k": ("captions", "filename"),
    "coco": ("captions", "filename", "filepath"),
    "iconqa": ("question", "choices", "answer", "ques_type", "skills"),
    "scienceqa": ("question", "choices", "answer", "hint", "subject", "topic"),
}


def by_id(rows: Sequence[Row]) -> list[Row]:
    """Return rows sorted by id; numeric ids are compared as numbers."""
    return sorted(rows, key=lambda row: (not row.id.isdecimal(), int(row.id) if row.id.isdecimal() else 0, row.id))


def write(dataset: str, folder: Path, splits: Splits) -> list[str]:
    """Write the official annotation files of a dataset.

    Args:
        dataset: one of the eight.
        folder: the dataset's folder.
        splits: rows per official split.

    Returns:
        The names of the files.

    Raises:
        UserError: the folder cannot be written.
    """
    files = _WRITERS[dataset]({name: by_id(rows) for name, rows in splits.items()})
    for name, content in files.items():
        write_atomic(folder / name, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    return list(files)


def _pick(dataset: str, row: Row) -> dict[str, Any]:
    return {name: row.fields[name] for name in FIELDS[dataset] if name in row.fields}


def _number(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() and str(int(text)) == text else text


def _okvqa(splits: Splits) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for name, rows in splits.items():
        files[f"OpenEnded_mscoco_{name}_questions.json"] = {"questions": [
            {"image_id": _number(row.image), "question": row.fields["question"], "question_id": _number(row.id)}
            for row in rows
        ]}
        files[f"mscoco_{name}_annotations.json"] = {"annotations": [
            {
                "image_id": _number(row.image), "question_id": _number(row.id),
                "question_type": row.fields.get("question_type") or "",
                "answers": [{"answer_id": n, "answer": text} for n, text in enumerate(row.fields["answers"], 1)],
            }
            for row in rows
        ]}
    return files


def _textvqa(splits: Splits) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for name, rows in splits.items():
        files[f"TextVQA_0.5.1_{name}.json"] = {"data": [
            {
                "question": row.fields["question"], "image_id": row.image, "question_id": _number(row.id),
                "answers": list(row.fields["answers"]),
            }
            for row in rows
        ]}
        tokens = {row.image: row.fields["ocr_tokens"] for row in rows if row.fields.get("ocr_tokens") is not None}
        if tokens:
            files[f"TextVQA_Rosetta_OCR_v0.2_{name}.json"] = {"data": [
                {"image_id": image, "ocr_tokens": list(tokens[image])} for image in sorted(tokens, key=str)
            ]}
    return files


def _ocrvqa(splits: Splits) -> dict[str, Any]:
    return {"dataset.json": {
        row.id: {**_pick("ocrvqa", row), "split": int(name)} for name, rows in sorted(splits.items()) for row in rows
    }}


def _gqa(splits: Splits) -> dict[str, Any]:
    return {
        f"{name}_balanced_questions.json": {row.id: {"imageId": row.image, **_pick("gqa", row)} for row in rows}
        for name, rows in splits.items()
    }


def _captions(dataset: str, key: str) -> Callable[[Splits], dict[str, Any]]:
    def files(splits: Splits) -> dict[str, Any]:
        return {f"dataset_{dataset}.json": {"dataset": dataset, "images": [
            {
                key: _number(row.id), "split": name, "filename": row.fields["filename"],
                **({"filepath": row.fields["filepath"]} if dataset == "coco" else {}),
                "sentences": [{"raw": caption} for caption in row.fields["captions"]],
            }
            for name, rows in sorted(splits.items()) for row in rows
        ]}}

    return files


def _iconqa(splits: Splits) -> dict[str, Any]:
    return {
        "iconqa_data/problems.json": {
            row.id: _pick("iconqa", row) for name, rows in sorted(splits.items()) for row in rows
        },
        "iconqa_data/pid_splits.json": {
            f"choose_txt_{name}": [row.id for row in rows] for name, rows in sorted(splits.items())
        },
    }


def _scienceqa(splits: Splits) -> dict[str, Any]:
    return {
        "problems.json": {
            row.id: {**_pick("scienceqa", row), "image": "image.png" if row.image is not None else None, "split": name}
            for name, rows in sorted(splits.items()) for row in rows
        },
        "pid_splits.json": {name: [row.id for row in rows] for name, rows in sorted(splits.items())},
    }


_WRITERS: dict[str, Callable[[Splits], dict[str, Any]]] = {
    "okvqa": _okvqa, "textvqa": _textvqa, "ocrvqa": _ocrvqa, "gqa": _gqa,
    "flickr30k": _captions("flickr30k", "imgid"), "coco": _captions("coco", "cocoid"),
    "iconqa": _iconqa, "scienceqa": _scienceqa,
}
