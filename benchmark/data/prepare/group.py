"""Source (c): JSON files of the paper's group (LLaVA's eval.zip, LLaVA-HR's eval_aug, DataOptim, LoRASculpt).

They hold finished prompts. We extract the question from each prompt, so that the YAML alone decides what a model reads.
`verify` then compares each of our prompts with the one in the group's file. The answers of OK-VQA, GQA and ScienceQA
are only in the official files, so the group's files of these sets serve for comparison alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.prepare import official
from benchmark.data.prepare.files import Index
from benchmark.data.prepare.forms import Row
from benchmark.data.record import Record

Rows = dict[str, list[Row]]

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OCR = "\nReference OCR token: "
_OPTION = re.compile(r"([A-Z])\. (.*)")

# Evaluation files: dataset -> regular expression for the file's name.
QUESTIONS = {
    "okvqa": r"okvqa_(val|test)\.jsonl",
    "textvqa": r"llava_textvqa_val_v051_ocr\.jsonl",
    "ocrvqa": r"sampled_ocrvqa_test\.jsonl",
    "gqa": r"llava_gqa_testdev_balanced\.jsonl",
    "coco": r"llava_caption_mscoco_test\.jsonl",
    "iconqa": r"(fixed_)?iconqa_txt-test\.jsonl",
    "scienceqa": r"llava_test_CQM-A\.json",
}
TRAINING = {
    "coco": r"(coco|.*coco.*train.*)\.json",
    "flickr30k": r"(flickr30k|.*flickr30k.*train.*)\.json",
    "iconqa": r".*iconqa.*train.*\.jsonl?",
}


def _is_conversations(path: Path) -> bool:
    """Return whether a file begins like LLaVA's training files. Files of OK-VQA and LAVIS have similar names."""
    try:
        with path.open("rb") as file:
            return b'"conversations"' in file.read(2**16)
    except OSError:
        return True  # the reader reports the error


def load(dataset: str, names: Sequence[str], index: Index) -> Rows | None:
    """Read a dataset from the group's files.

    Args:
        dataset: one of the eight.
        names: official names of the requested splits.
        index: the user's files.

    Returns:
        Rows per official split, or None if there are no such files.

    Raises:
        UserError: a file is damaged, or a prompt does not have the expected form; the message names file and row.
    """
    loader = _LOADERS.get(dataset)
    splits = {} if loader is None else {name: loader(name, index) for name in names}
    return {name: rows for name, rows in splits.items() if rows is not None} if all(
        rows is not None for rows in splits.values()
    ) and splits else None


def verify(dataset: str, records: Sequence[Record], index: Index) -> list[str]:
    """Compare our evaluation prompts with those in the group's file, byte for byte.

    Args:
        dataset: one of the eight.
        records: the evaluation records.
        index: the user's files.

    Returns:
        Findings, one line each; empty if there is no such file.
    """
    path = index.like(QUESTIONS[dataset]) if dataset in QUESTIONS else None
    if path is None:
        return []
    theirs: dict[tuple[str, str], str] = {}
    for where, entry in _entries(path):
        key, text = _key_and_text(dataset, entry, path, where)
        theirs[(key, _question(text) if dataset in ("textvqa", "ocrvqa") else "")] = text
    ours = {}
    for record in records:
        shared = dataset in ("textvqa", "ocrvqa")
        key = str(record.meta["image_id"]) if shared else record.item_id
        ours[(key, record.meta["question"].strip().lower() if shared else "")] = record.prompt
    common = ours.keys() & theirs.keys()
    lines = [f"{path.name}: {len(common)} of our {len(ours)} questions are among its {len(theirs)}"]
    different = sorted(key for key in common if ours[key] != theirs[key])
    if different:
        first = different[0]
        lines.append(
            f"{len(different)} prompts DIFFER, the first of {first[0]}: ours {ours[first]!r}, theirs "
            f"{theirs[first]!r}. See the choices in conf/protocol/{dataset}.yaml"
        )
    elif common:
        lines.append("every prompt is the same, byte for byte")
    if len(common) < len(ours) and dataset in _LOADERS:
        lines.append("--group-first takes its questions instead of a sample of our own")
    return lines


def _entries(path: Path) -> list[tuple[str, Any]]:
    """Return (where, entry) for each entry of a file of JSON lines or a JSON list."""
    if path.suffix == ".jsonl":
        return check.read_lines(path)
    found = check.rows(check.read(path), path, "the file")
    return [(f"entry {number}", entry) for number, entry in enumerate(found)]


def _key_and_text(dataset: str, entry: Any, path: Path, where: str) -> tuple[str, str]:
    """Return the id and the prompt from a line of an evaluation file."""
    if dataset == "scienceqa":
        return check.identifier(entry, "id", path, where), _turns(entry, path, where)[0] + LETTER
    text = check.text(entry, "text", path, where)
    if dataset in ("ocrvqa", "textvqa"):
        return Path(check.text(entry, "image", path, where)).stem, text
    if dataset == "iconqa":
        return _pid(entry, path, where), text
    return check.identifier(entry, "id" if dataset == "coco" else "question_id", path, where), text


def _question(text: str) -> str:
    return text.partition(OCR)[0].removesuffix(SHORT).strip().lower()


def _turns(entry: Any, path: Path, where: str) -> tuple[str, str]:
    """Return the first question and answer of a conversation, without the image tag."""
    turns = check.rows(check.mapping(entry, path, where).get("conversations"), path, f"conversations of {where}")
    if len(turns) != 2:
        raise UserError(f"{path}: {where} has {len(turns)} turns, expected a question and an answer. {check.FIX}")
    question, answer = (check.text(turn, "value", path, f"a turn of {where}") for turn in turns)
    return question.replace("<image>", "").strip(), answer.strip()


# ---------------------------------------------------------------------------------------------------------------
# Datasets whose rows come from these files


def _textvqa(name: str, index: Index) -> list[Row] | None:
    path, annotations = index.like(QUESTIONS["textvqa"]), index.file(f"TextVQA_0.5.1_{name}.json")
    if path is None or annotations is None or name != "val":
        return None
    tokens: dict[str, list[str]] = {}
    for where, entry in _entries(path):
        image, text = _key_and_text("textvqa", entry, path, where)
        question, found, rest = text.partition(OCR)
        if not found or not rest.endswith(SHORT):
            raise UserError(f"{path}: {where} has no line {OCR.strip()!r} or not LLaVA's instruction. {check.FIX}")
        listed = rest.removesuffix(SHORT)
        tokens[image] = listed.split(", ") if listed else []
    rows = []
    for row in official.textvqa_questions(annotations):
        if row.image not in tokens:
            raise UserError(f"{path} has no question on image {row.image} (question {row.id}). {check.FIX}")
        rows.append(Row(row.id, row.image, {**row.fields, "ocr_tokens": tokens[row.image]}))
    return rows


def _ocrvqa(name: str, index: Index) -> list[Row] | None:
    path = index.like(QUESTIONS["ocrvqa"])
    if path is None or name != "3":
        return None
    questions: dict[str, list[str]] = {}
    answers: dict[str, list[str]] = {}
    for where, entry in _entries(path):
        book, text = _key_and_text("ocrvqa", entry, path, where)
        if not text.endswith(SHORT):
            raise UserError(f"{path}: {where} does not end with {SHORT.strip()!r}. {check.FIX}")
        questions.setdefault(book, []).append(text.removesuffix(SHORT))
        answers.setdefault(book, []).append(check.text(entry, "answer", path, where))
    return [Row(book, book, {"questions": questions[book], "answers": answers[book]}) for book in questions]


def _iconqa(name: str, index: Index) -> list[Row] | None:
    if name == "train":
        path = index.like(TRAINING["iconqa"], _is_conversations)
    else:
        path = index.like(QUESTIONS["iconqa"]) if name == "test" else None
    if path is None:
        return None
    rows = []
    for where, entry in _entries(path):
        if "conversations" in check.mapping(entry, path, where):
            text, answer = _turns(entry, path, where)
        else:
            text, answer = check.text(entry, "text", path, where), check.text(entry, "answer", path, where)
        question, choices = _options(text.removesuffix(LETTER), path, where)
        letter = answer.removeprefix("Answer: ")
        if not (len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices)):
            raise UserError(f"{path}: {where} has the answer {answer!r} but {len(choices)} options. {check.FIX}")
        pid = _pid(entry, path, where)
        rows.append(Row(pid, pid, {
            "question": question, "choices": choices, "answer": ord(letter) - ord("A"), "ques_type": "choose_txt",
        }))
    check.distinct((row.id for row in rows), path, "problem")
    return rows


def _options(text: str, path: Path, where: str) -> tuple[str, list[str]]:
    """Split the 'A. x' lines off the end of a prompt."""
    lines = text.split("\n")
    choices: list[re.Match[str]] = []
    while lines and (found := _OPTION.fullmatch(lines[-1])):
        choices.insert(0, found)
        lines.pop()
    if not choices or [found[1] for found in choices] != [chr(ord("A") + n) for n in range(len(choices))] or not lines:
        raise UserError(f"{path}: {where} does not end with option lines 'A. ...', 'B. ...': {text[-80:]!r}. "
                        f"{check.FIX}")
    return "\n".join(lines).strip(), [found[2] for found in choices]


def _pid(entry: Any, path: Path, where: str) -> str:
    """Return the problem that an image belongs to: .../choose_txt/<pid>/image.png."""
    image = Path(check.text(entry, "image", path, where))
    if image.stem == "image" and image.parent.name:
        return check.identifier({"pid": image.parent.name}, "pid", path, where)
    return check.identifier(entry, "question_id" if "question_id" in entry else "id", path, where)


def _coco(name: str, index: Index) -> list[Row] | None:
    if name == "train":
        return _captions("coco", index)
    path = index.file("captions_test5k.json")
    if path is None or name != "test":
        return None
    content = check.mapping(check.read(path), path, "the file")
    captions: dict[str, list[str]] = {}
    for number, entry in enumerate(check.rows(content.get("annotations"), path, "annotations")):
        where = f"annotation {number}"
        image = str(check.number(entry, "image_id", path, where))
        captions.setdefault(image, []).append(check.text(entry, "caption", path, where))
    files = {image: f"COCO_val2014_{int(image):012d}.jpg" for image in captions}
    return [
        Row(image, files[image], {"captions": captions[image], "filename": files[image], "filepath": "val2014"})
        for image in captions
    ]


def _flickr30k(name: str, index: Index) -> list[Row] | None:
    return _captions("flickr30k", index) if name == "train" else None


def _captions(dataset: str, index: Index) -> list[Row] | None:
    """Collect the captions of each image from training conversations."""
    path = index.like(TRAINING[dataset], _is_conversations)
    if path is None:
        return None
    captions: dict[str, list[str]] = {}
    for where, entry in _entries(path):
        image = Path(check.text(entry, "image", path, where)).name
        caption = _turns(entry, path, where)[1]
        found = captions.setdefault(image, [])
        if caption not in found:
            found.append(caption)
    rows = []
    for image, found in captions.items():
        key = Path(image).stem
        if dataset == "coco":
            digits = re.fullmatch(r"COCO_(train2014|val2014)_(\d{12})", key)
            if digits is None:
                raise UserError(f"{path}: {image!r} is not an image of COCO 2014. {check.FIX}")
            fields = {"captions": found, "filename": image, "filepath": digits[1]}
            rows.append(Row(str(int(digits[2])), image, fields))
        else:
            rows.append(Row(key, image, {"captions": found, "filename": image}))
    return rows


_LOADERS: dict[str, Callable[[str, Index], list[Row] | None]] = {
    "textvqa": _textvqa, "ocrvqa": _ocrvqa, "iconqa": _iconqa, "coco": _coco, "flickr30k": _flickr30k,
}
