"""Source (a): the official files, anywhere below the user's folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.prepare.files import Index
from benchmark.data.prepare.forms import Row

Rows = dict[str, list[Row]]


def load(dataset: str, names: Sequence[str], index: Index) -> Rows | None:
    """Read the official files of a dataset.

    Args:
        dataset: one of the eight.
        names: official names of the requested splits.
        index: the user's files.

    Returns:
        Rows per official split, or None if there are no such files.

    Raises:
        UserError: a file is damaged; the message names file, row and reason.
    """
    return _LOADERS[dataset](names, index)


def _okvqa(names: Sequence[str], index: Index) -> Rows | None:
    splits: Rows = {}
    for name in names:
        questions = index.file(f"OpenEnded_mscoco_{name}_questions.json")
        annotations = index.file(f"mscoco_{name}_annotations.json")
        if questions is None or annotations is None:
            return None
        answers, kinds = {}, {}
        entries = _list(annotations, "annotations")
        found = (check.identifier(e, "question_id", annotations, w) for w, e in entries)
        check.distinct(found, annotations, "question")
        for where, entry in entries:
            key = check.identifier(entry, "question_id", annotations, where)
            given = check.rows(entry.get("answers"), annotations, f"answers of question {key}")
            answers[key] = [
                check.text(item, "answer", annotations, f"an answer of question {key}", blank=True) for item in given
            ]
            if not given:
                raise UserError(f"{annotations}: question {key} has an empty list of answers. {check.FIX}")
            kinds[key] = check.text(entry, "question_type", annotations, f"question {key}", default="")
        rows = []
        for where, entry in _list(questions, "questions"):
            key = check.identifier(entry, "question_id", questions, where)
            if key not in answers:
                raise UserError(f"{annotations} has no answers for question {key} of {questions.name}. {check.FIX}")
            where = f"question {key}"
            rows.append(Row(key, str(check.number(entry, "image_id", questions, where)), {
                "question": check.text(entry, "question", questions, where), "answers": answers[key],
                "question_type": kinds[key],
            }))
        check.distinct((row.id for row in rows), questions, "question")
        splits[name] = rows
    return splits


def rosetta(path: Path) -> dict[str, list[str]]:
    """Return the OCR tokens of every image in a Rosetta file."""
    tokens = {}
    for where, entry in _list(path, "data"):
        image = check.identifier(entry, "image_id", path, where)
        tokens[image] = check.texts(entry, "ocr_tokens", path, f"image {image}", least=0)
    return tokens


def textvqa_questions(path: Path) -> list[Row]:
    """Return the questions of TextVQA_0.5.1_<name>.json, without OCR tokens."""
    rows = []
    for where, entry in _list(path, "data"):
        key = check.identifier(entry, "question_id", path, where)
        where = f"question {key}"
        rows.append(Row(key, check.identifier(entry, "image_id", path, where), {
            "question": check.text(entry, "question", path, where),
            "answers": check.texts(entry, "answers", path, where),
        }))
    check.distinct((row.id for row in rows), path, "question")
    return rows


def _textvqa(names: Sequence[str], index: Index) -> Rows | None:
    splits: Rows = {}
    for name in names:
        path = index.file(f"TextVQA_0.5.1_{name}.json")
        ocr = index.file(f"TextVQA_Rosetta_OCR_v0.2_{name}.json")
        if path is None or ocr is None:
            return None
        tokens, rows = rosetta(ocr), []
        for row in textvqa_questions(path):
            if row.image not in tokens:
                about = f"question {row.id} of {path.name}"
                raise UserError(f"{ocr} has no entry for image {row.image} ({about}). {check.FIX}")
            rows.append(Row(row.id, row.image, {**row.fields, "ocr_tokens": tokens[row.image]}))
        splits[name] = rows
    return splits


def books(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (split, book) of OCR-VQA's dataset.json."""
    for book, entry in check.mapping(check.read(path), path, "the file").items():
        where = f"book {book}"
        check.identifier({"id": book}, "id", path, where)
        split = check.identifier(entry, "split", path, where)
        questions = check.texts(entry, "questions", path, where, least=0)
        answers = check.texts(entry, "answers", path, where, least=0)
        if len(questions) != len(answers):
            raise UserError(f"{path}: {where} has {len(questions)} questions, {len(answers)} answers. {check.FIX}")
        more = {key: check.text(entry, key, path, where, default="") for key in ("title", "authorName", "genre")}
        yield split, Row(book, book, {"questions": questions, "answers": answers, **more})


def is_ocrvqa(path: Path) -> bool:
    """Return whether a dataset.json is OCR-VQA's, that is, begins with a book."""
    with path.open("rb") as file:
        start = file.read(4096)
    return any(word in start for word in (b"imageURL", b"authorName", b"questions"))


def _ocrvqa(names: Sequence[str], index: Index) -> Rows | None:
    path = index.file("dataset.json", is_ocrvqa)
    if path is None:
        return None
    splits: Rows = {name: [] for name in names}
    for split, row in books(path):
        if split in splits:
            splits[split].append(row)
    return splits


def gqa_questions(path: Path) -> list[Row]:
    """Return the questions of <name>_balanced_questions.json."""
    rows = []
    for key, entry in check.mapping(check.read(path), path, "the file").items():
        where = f"question {key}"
        types = check.mapping(check.mapping(entry, path, where).get("types") or {}, path, f"types of {where}")
        rows.append(Row(key, check.identifier(entry, "imageId", path, where), {
            "question": check.text(entry, "question", path, where),
            "answer": check.text(entry, "answer", path, where),
            "types": {
                kind: check.text(types, kind, path, f"types of {where}", default="")
                for kind in ("structural", "semantic", "detailed")
            },
        }))
    return rows


def _gqa(names: Sequence[str], index: Index) -> Rows | None:
    paths = {name: path for name in names if (path := index.file(f"{name}_balanced_questions.json")) is not None}
    return {name: gqa_questions(path) for name, path in paths.items()} if len(paths) == len(names) else None


def _karpathy(dataset: str, key: str) -> Callable[[Sequence[str], Index], Rows | None]:
    def rows_of(names: Sequence[str], index: Index) -> Rows | None:
        path = index.file(f"dataset_{dataset}.json")
        if path is None:
            return None
        splits: Rows = {name: [] for name in names}
        for where, entry in _list(path, "images"):
            split = check.text(entry, "split", path, where)
            if split not in splits:
                continue
            image = check.identifier(entry, key, path, where)
            where = f"image {image}"
            sentences = check.rows(entry.get("sentences"), path, f"sentences of {where}")
            if not sentences:
                raise UserError(f"{path}: {where} has no captions. {check.FIX}")
            name = check.identifier(entry, "filename", path, where)
            fields: dict[str, Any] = {
                "captions": [check.text(item, "raw", path, f"a sentence of {where}") for item in sentences],
                "filename": name,
            }
            if dataset == "coco":
                fields["filepath"] = check.identifier(entry, "filepath", path, where)
            splits[split].append(Row(image, name, fields))
        for name in names:
            check.distinct((row.id for row in splits[name]), path, "image")
        return splits

    return rows_of


def problem(entry: Any, path: Path, where: str) -> dict[str, Any]:
    """Return question, choices and answer of a multiple-choice problem."""
    given = check.rows(entry.get("choices"), path, f"choices of {where}")
    if any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in given):
        raise UserError(f"{path}: choices of {where} holds {given!r}, expected strings or numbers. {check.FIX}")
    choices, answer = [str(item) for item in given], entry.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"{path}: {where} has answer {answer!r} but {len(choices)} choices. {check.FIX}")
    return {"question": check.text(entry, "question", path, where), "choices": choices, "answer": answer}


def _split_file(index: Index, key: str) -> tuple[Path, Path] | None:
    """Return problems.json and its pid_splits.json with this key. Two datasets use the same file names."""
    def has_key(path: Path) -> bool:
        keys = check.mapping(check.read(path), path, "the file")
        other = not key.startswith("choose_txt_") and any(name.startswith("choose_txt_") for name in keys)
        return key in keys and not other and (path.parent / "problems.json").is_file()

    path = index.file("pid_splits.json", has_key)
    return None if path is None else (path.parent / "problems.json", path)


def _problems(
    names: Sequence[str], index: Index, prefix: str, fields: Callable[[Any, Path, str], dict[str, Any]]
) -> Rows | None:
    found = _split_file(index, f"{prefix}{names[0]}")
    if found is None:
        return None
    path, split_file = found
    problems = check.mapping(check.read(path), path, "the file")
    parts = check.mapping(check.read(split_file), split_file, "the file")
    splits: Rows = {}
    for name in names:
        rows = []
        wanted = check.rows(parts.get(f"{prefix}{name}"), split_file, f"{prefix}{name}")
        for position, pid in enumerate(wanted):
            pid = check.identifier({"pid": pid}, "pid", split_file, f"{prefix}{name}, entry {position}")
            where = f"problem {pid}"
            if pid not in problems:
                raise UserError(f"{path} lacks the problem {pid} that {split_file.name} names. {check.FIX}")
            entry = check.mapping(problems[pid], path, where)
            content = {**problem(entry, path, where), **fields(entry, path, where)}
            has_image = bool(content.pop("image", True))
            rows.append(Row(pid, pid if has_image else None, content))
        check.distinct((row.id for row in rows), split_file, "problem")
        splits[name] = rows
    return splits


def _iconqa(names: Sequence[str], index: Index) -> Rows | None:
    def fields(entry: Any, path: Path, where: str) -> dict[str, Any]:
        skills = [] if entry.get("skills") is None else check.texts(entry, "skills", path, where, least=0)
        return {"ques_type": check.text(entry, "ques_type", path, where, default=""), "skills": skills}

    return _problems(names, index, "choose_txt_", fields)


def _scienceqa(names: Sequence[str], index: Index) -> Rows | None:
    def fields(entry: Any, path: Path, where: str) -> dict[str, Any]:
        image = check.text(entry, "image", path, where, default=None)
        more = {key: check.text(entry, key, path, where, default="") for key in ("hint", "subject", "topic")}
        return {**more, "image": image}

    return _problems(names, index, "", fields)


def _list(path: Path, key: str) -> list[tuple[str, Any]]:
    """Return (where, entry) for each entry of the list under a key of a file."""
    content = check.mapping(check.read(path), path, "the file")
    if key not in content:
        raise UserError(f"{path}: the file lacks the key {key!r}. {check.FIX}")
    one = key.removesuffix("s") if key != "data" else "entry"
    entries = check.rows(content[key], path, key)
    return [(f"{one} {number}", check.mapping(entry, path, f"{one} {number}")) for number, entry in enumerate(entries)]


_LOADERS: dict[str, Callable[[Sequence[str], Index], Rows | None]] = {
    "okvqa": _okvqa, "textvqa": _textvqa, "ocrvqa": _ocrvqa, "gqa": _gqa,
    "flickr30k": _karpathy("flickr30k", "imgid"), "coco": _karpathy("coco", "cocoid"),
    "iconqa": _iconqa, "scienceqa": _scienceqa,
}
