"""TextVQA: questions about words in the picture, ten answers each, OCR tokens (Singh et al. 2019).

Files below textvqa/: TextVQA_0.5.1_<name>.json, TextVQA_Rosetta_OCR_v0.2_<name>.json,
train_images/<image_id>.jpg (train_images also holds the official validation images).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.layout import FIX, Template, commonest, need, one_name, read_json, render
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

SPLITS = {"train": "train", "validation": "minival", "test": "val"}


@dataclasses.dataclass(frozen=True)
class _Template:
    """The two fields of a spec that `render` reads."""

    id: str
    prompt: str


def load(root: Path, split: str, spec: DatasetLike) -> list[Record]:
    """Read a split; the target is the annotators' most frequent answer.

    `options.ocr_tokens: false` (default true) selects the protocol without OCR: the prompt's line with {ocr_tokens} is
    dropped, and the OCR file is not needed.

    Args:
        root: data folder.
        split: train, validation or test.
        spec: prompt fields: question, ocr_tokens (joined by ', ').

    Returns:
        Records in file order.

    Raises:
        UserError: a file or key is missing, or an image has no OCR entry.
    """
    folder, name = root / "textvqa", one_name(spec, split, SPLITS)
    path = folder / f"TextVQA_0.5.1_{name}.json"
    ocr_file = folder / f"TextVQA_Rosetta_OCR_v0.2_{name}.json"
    with_ocr = spec.options.get("ocr_tokens", True)
    template: Template = spec
    tokens = {}
    if with_ocr:
        tokens = _tokens(ocr_file)
    else:
        kept = [line for line in spec.prompt.split("\n") if "{ocr_tokens}" not in line]
        template = _Template(spec.id, "\n".join(kept))
    records = []
    for number, entry in enumerate(need(read_json(path), "data", path)):
        question_id = need(entry, "question_id", path, f"question {number}")
        where = f"question {question_id}"
        image_id = str(need(entry, "image_id", path, where))
        if with_ocr and image_id not in tokens:
            raise UserError(f"{ocr_file} has no entry for image {image_id} ({where}). {FIX}")
        question = check.text(entry, "question", path, where, blank=True)
        answers = tuple(check.texts(entry, "answers", path, where))
        fields = {"question": question} | ({"ocr_tokens": ", ".join(tokens[image_id])} if with_ocr else {})
        records.append(Record(
            item_id=str(question_id),
            dataset=spec.id,
            split=split,
            image=folder / "train_images" / f"{image_id}.jpg",
            prompt=render(template, **fields),
            target=commonest(answers),
            references=answers,
            options=None,
            group=image_id,
            meta={
                "question": question,
                "question_type": entry.get("question_type") or "",
                "question_id": question_id,
                "image_id": image_id,
                "ocr_tokens": tokens.get(image_id),
            },
        ))
    return records


def _tokens(path: Path) -> dict[str, list[str]]:
    """Return the OCR tokens of every image in a Rosetta file."""
    tokens = {}
    for number, entry in enumerate(need(read_json(path), "data", path)):
        image_id = str(need(entry, "image_id", path, f"entry {number}"))
        tokens[image_id] = check.texts(entry, "ocr_tokens", path, f"image {image_id}", least=0)
    return tokens
