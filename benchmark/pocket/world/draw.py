"""Write the eight drawn datasets in the official layouts of their counterparts, deterministically."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.core.errors import UserError
from benchmark.core.files import unfinished_folder, write_atomic
from benchmark.pocket.world import icons, scene, splits, targets, upstream, words
from benchmark.pocket.world.scene import Cover, Diagram, Scene
from benchmark.pocket.world.splits import TARGETS, UPSTREAM, owner
from benchmark.pocket.world.targets import Choice, captions, letter
from benchmark.pocket.world.upstream import Question

COUNTS = {
    **{name: {"train": 1000, "validation": 200, "test": 500} for name in UPSTREAM},
    **{name: {"train": 512, "validation": 200, "test": 500} for name in TARGETS},
}
"""Questions (caption sets: images) per split. Pretraining draws more of the upstream train contents, see pretrain."""

SPLITS = ("train", "validation", "test")
PER_PICTURE = {"okvqa": 1, "textvqa": 1, "ocrvqa": 2, "gqa": 3}
"""Upstream questions kept per picture."""

Picture = Scene | Cover | Diagram
Progress = Callable[[int, int, str], None]


def candidates(dataset: str, split: str) -> Iterator[tuple[Picture | None, Any, random.Random]]:
    """Yield the endless, seeded stream of a data set's items in one split.

    Args:
        dataset: one of the eight, or 'describe' (pretraining's generic descriptions).
        split: train, validation or test.

    Returns:
        (picture or None, item, generator for drawing): the item is a list of questions (upstream), a Choice, or for
        captions and descriptions the picture itself. Only contents that (dataset, split) owns are yielded; contents
        repeat only where the space is small.
    """
    rng = random.Random(f"{dataset}/{split}")
    while True:
        if dataset in UPSTREAM:
            picture, item = getattr(upstream, dataset)(rng)
            key = picture.key()
        elif dataset in ("iconqa", "scienceqa"):
            item = getattr(targets, dataset)(rng)
            picture, key = item.picture, item.key()
        else:
            picture = item = describe_picture(rng) if dataset == "describe" else targets.caption_scene(rng)
            key = picture.key()
        if owner(key) == (dataset, split):
            yield picture, item, rng


def describe_picture(rng: random.Random) -> Scene | Diagram:
    """A picture for a generic description: mostly scenes of one to four things, some diagrams."""
    if rng.random() < 0.25:
        return targets.random_diagram(rng)
    names = [icon.name for icon in icons.ICONS]
    return upstream.scene_with(rng, rng.sample(names, rng.choice((1, 2, 3, 3, 4))))


def distinct(dataset: str, split: str) -> Iterator[tuple[Picture | None, Any, random.Random, str]]:
    """Yield the items of `candidates` whose content key is new, with the key."""
    seen: set[str] = set()
    misses = 0
    for picture, item, rng in candidates(dataset, split):
        key = item.key() if isinstance(item, Choice) else picture.key()
        if key in seen:
            misses += 1
            if misses > 200_000:
                raise UserError(f"{dataset}/{split}: no new content after {len(seen)} items. Ask for fewer items.")
            continue
        seen.add(key)
        misses = 0
        yield picture, item, rng, key


def draw(root: Path, only: tuple[str, ...] | None = None, on_progress: Progress | None = None) -> None:
    """Write every dataset that is missing or was drawn by another version of this code.

    Args:
        root: folder that gets one sub-folder per dataset; a finished one carries drawn.json.
        only: dataset ids, default all eight.
        on_progress: called with (datasets done, datasets in all, name).

    Raises:
        UserError: the folder cannot be written, or the icon font is missing.
    """
    names = only or UPSTREAM + TARGETS
    stamp = {"version": code_version(), "counts": COUNTS}
    for index, name in enumerate(names):
        if on_progress:
            on_progress(index, len(names), name)
        folder = Path(root) / name
        if _stamp(folder) == {**stamp, "counts": COUNTS[name]}:
            continue
        _draw_dataset(name, folder, {**stamp, "counts": COUNTS[name]})
    if on_progress:
        on_progress(len(names), len(names), "done")


def _draw_dataset(name: str, folder: Path, stamp: dict[str, Any]) -> None:
    """Draw into a temporary sibling and rename, so that an interrupted run leaves nothing half-written."""
    if folder.exists() and not (folder / "drawn.json").exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files that this program did not write. Move them away or choose another data_root."
        )
    drawn, old = (folder.with_name(f".{name}.{os.getpid()}{end}") for end in ("", ".old"))
    try:
        with unfinished_folder(drawn), unfinished_folder(old):
            drawn.mkdir()
            WRITERS[name](drawn, name)
            write_atomic(drawn / "drawn.json", json.dumps(stamp, indent=1))
            if folder.exists():
                folder.rename(old)  # renamed before it is deleted: a kill never leaves half of it under its name
            drawn.rename(folder)
    except OSError as error:
        raise UserError(
            f"Cannot write {folder}: {error.strerror}. Choose a writable data_root with 100 MB free."
        ) from error


def code_version() -> str:
    """Return a digest of the drawing code and of the packages that decide the pixels."""
    total = hashlib.sha256()
    for module in (icons, scene, splits, targets, upstream, words):
        total.update(Path(module.__file__).read_bytes())
    total.update(Path(__file__).read_bytes())
    total.update("".join(version(p) for p in ("pillow", "matplotlib", "fonticon-fontawesome6")).encode())
    return total.hexdigest()[:16]


def _stamp(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "drawn.json").read_text())
    except (OSError, ValueError):
        return None


class _Folder:
    """Collects a dataset's pictures and content keys while its writer runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys: dict[str, dict[str, str]] = {split: {} for split in SPLITS}

    def picture(self, path: str, picture: Picture, rng: random.Random) -> None:
        """Draw and save a picture below the folder."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image: Image.Image = picture.draw(rng)
        image.save(target, **({"quality": 95, "subsampling": 0} if path.endswith(".jpg") else {"compress_level": 1}))

    def json(self, path: str, value: Any) -> None:
        """Write a JSON file below the folder."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value))

    def close(self) -> None:
        """Write the content keys that the audit compares."""
        self.json("scene_keys.json", self.keys)


def _questions(name: str, split: str) -> Iterator[tuple[int, Picture, list[Question], random.Random, str]]:
    """Yield (picture number, picture, kept questions, generator, key) until the split's count is reached."""
    left = COUNTS[name][split]
    for number, (picture, questions, rng, key) in enumerate(distinct(name, split)):
        kept = kept_questions(name, questions, rng)[: min(PER_PICTURE[name], left)]
        if not kept:
            continue
        yield number, picture, kept, rng, key
        left -= len(kept)
        if left == 0:
            return


def kept_questions(name: str, questions: list[Question], rng: random.Random, most: int | None = None) -> list[Question]:
    """Return the questions of one picture that a set keeps, in random order.

    Args:
        name: upstream set.
        questions: all questions of the picture.
        rng: seeded generator.
        most: at most so many, default the set's number per picture.

    Returns:
        GQA: a balanced choice (`upstream.gqa_balanced`); the others: a random choice.
    """
    most = most or PER_PICTURE[name]
    if name == "gqa":
        return upstream.gqa_balanced(rng, questions, most)
    return rng.sample(questions, min(most, len(questions)))


BASE = {"train": 100_000, "validation": 200_000, "test": 300_000}
"""First image number of each split."""


def _okvqa(root: Path, name: str) -> None:
    out = _Folder(root)
    for split, official in (("train", "train2014"), ("validation", "minival2014"), ("test", "val2014")):
        asked, annotated = [], []
        for number, picture, questions, rng, key in _questions(name, split):
            image_id = BASE[split] + number
            out.picture(f"{official}/COCO_{official}_{image_id:012d}.jpg", picture, rng)
            out.keys[split][str(image_id)] = key
            for index, question in enumerate(questions):
                question_id = image_id * 10 + index
                asked.append({"image_id": image_id, "question": question.text, "question_id": question_id})
                answers = [
                    {"answer_id": k + 1, "raw_answer": a, "answer_confidence": "yes", "answer": a}
                    for k, a in enumerate(question.answers)
                ]
                annotated.append(
                    {
                        "image_id": image_id, "question_id": question_id, "question_type": question.kind,
                        "answer_type": "other", "confidence": 5, "answers": answers,
                    }
                )
        head = {"info": {"description": "drawn"}, "data_type": "mscoco", "data_subtype": official, "license": {}}
        out.json(f"OpenEnded_mscoco_{official}_questions.json", {**head, "task_type": "Open-Ended", "questions": asked})
        out.json(f"mscoco_{official}_annotations.json", {**head, "annotations": annotated})
    out.close()


def _textvqa(root: Path, name: str) -> None:
    out = _Folder(root)
    for split, official in (("train", "train"), ("validation", "minival"), ("test", "val")):
        asked, read = [], []
        for number, picture, questions, rng, key in _questions(name, split):
            image_id = f"{BASE[split] + number:x}"
            out.picture(f"train_images/{image_id}.jpg", picture, rng)
            out.keys[split][image_id] = key
            (question,) = questions
            asked.append(
                {
                    "image_id": image_id, "question_id": BASE[split] + number, "question": question.text,
                    "answers": list(question.answers), "set_name": official,
                    "image_classes": [t.icon for t in picture.things],
                }
            )
            read.append({"image_id": image_id, "ocr_tokens": list(question.ocr), "ocr_info": []})
        out.json(f"TextVQA_0.5.1_{official}.json", {"dataset_type": official, "data": asked})
        out.json(f"TextVQA_Rosetta_OCR_v0.2_{official}.json", {"dataset_type": official, "data": read})
    out.close()


def _ocrvqa(root: Path, name: str) -> None:
    out = _Folder(root)
    books = {}
    for split, official in (("train", 1), ("validation", 2), ("test", 3)):
        for number, cover, questions, rng, key in _questions(name, split):
            book = str(BASE[split] + number)
            out.picture(f"images/{book}.jpg", cover, rng)
            out.keys[split][book] = key
            books[book] = {
                "imageURL": "", "questions": [q.text for q in questions], "answers": [q.answer for q in questions],
                "title": " ".join(cover.title), "authorName": " ".join(cover.author), "genre": cover.genre,
                "split": official,
            }
    out.json("dataset.json", books)
    out.close()


GQA_TYPES = {
    "colour": ("query", "attr"), "object": ("query", "obj"), "relation": ("query", "rel"),
    "count": ("query", "count"), "place": ("query", "global"), "verify": ("verify", "rel"),
}
"""Question kind -> (structural, semantic) type."""


def _gqa(root: Path, name: str) -> None:
    out = _Folder(root)
    for split, official in (("train", "train"), ("validation", "val"), ("test", "testdev")):
        asked = {}
        for number, picture, questions, rng, key in _questions(name, split):
            image_id = f"n{BASE[split] + number}"
            out.picture(f"images/{image_id}.jpg", picture, rng)
            out.keys[split][image_id] = key
            for index, question in enumerate(questions):
                structural, semantic = GQA_TYPES[question.kind]
                asked[f"{BASE[split] + number}{index}"] = {
                    "imageId": image_id, "question": question.text, "answer": question.answer,
                    "fullAnswer": f"It is {question.answer}.", "isBalanced": True,
                    "types": {"structural": structural, "semantic": semantic, "detailed": question.kind},
                }
        out.json(f"{official}_balanced_questions.json", asked)
    out.close()


def _captions(root: Path, name: str) -> None:
    """Flickr30k and COCO share Karpathy's format and differ in the id and in where images lie."""
    out = _Folder(root)
    images, sentence = [], 0
    for split, official in (("train", "train"), ("validation", "val"), ("test", "test")):
        for number, (picture, _, rng, key) in enumerate(distinct(name, split)):
            if number == COUNTS[name][split]:
                break
            image_id = BASE[split] + number
            texts = captions(rng, picture, name)
            rows = [
                {"tokens": t.rstrip(".").split(), "raw": t, "imgid": image_id, "sentid": sentence + k}
                for k, t in enumerate(texts)
            ]
            sentence += len(texts)
            entry = {"imgid": image_id, "sentids": [r["sentid"] for r in rows], "sentences": rows, "split": official}
            if name == "coco":
                folder = "train2014" if split == "train" else "val2014"
                filename = f"COCO_{folder}_{image_id:012d}.jpg"
                path = f"{folder}/{filename}"
                entry |= {"filepath": folder, "cocoid": image_id}
            else:
                filename = f"{image_id}.jpg"
                path = f"flickr30k-images/{filename}"
            images.append(entry | {"filename": filename})
            out.picture(path, picture, rng)
            out.keys[split][str(image_id)] = key
    out.json(f"dataset_{name}.json", {"images": images, "dataset": name})
    out.close()


def _iconqa(root: Path, name: str) -> None:
    out = _Folder(root)
    problems, pids = {}, {}
    for split, official in (("train", "train"), ("validation", "val"), ("test", "test")):
        pids[f"choose_txt_{official}"] = []
        for number, (picture, item, rng, key) in enumerate(distinct(name, split)):
            if number == COUNTS[name][split]:
                break
            pid = str(BASE[split] + number)
            folder = f"iconqa_data/iconqa/{official}/choose_txt/{pid}"
            data = {
                "question": item.question,
                "choices": list(item.options),
                "answer": item.answer,
                "ques_type": "choose_txt",
            }
            data |= {"grade": "prek", "label": item.kind}
            out.picture(f"{folder}/image.png", picture, rng)
            out.json(f"{folder}/data.json", data)
            out.keys[split][pid] = key
            problems[pid] = data | {"split": official}
            pids[f"choose_txt_{official}"].append(pid)
    out.json("iconqa_data/problems.json", problems)
    out.json("iconqa_data/pid_splits.json", pids)
    out.close()


def _scienceqa(root: Path, name: str) -> None:
    out = _Folder(root)
    problems, pids = {}, {}
    for split, official in (("train", "train"), ("validation", "val"), ("test", "test")):
        pids[official] = []
        for number, (picture, item, rng, key) in enumerate(distinct(name, split)):
            if number == COUNTS[name][split]:
                break
            pid = str(BASE[split] + number)
            if picture is not None:
                out.picture(f"images/{official}/{pid}/image.png", picture, rng)
            problems[pid] = {
                "question": item.question, "choices": list(item.options), "answer": item.answer, "hint": item.hint,
                "image": "image.png" if picture is not None else None, "task": "closed choice", "grade": "grade2",
                "subject": "natural science", "topic": item.kind, "category": item.kind, "skill": item.kind,
                "lecture": "", "solution": f"The answer is {letter(item.answer)}.", "split": official,
            }
            pids[official].append(pid)
            out.keys[split][pid] = key
    out.json("problems.json", problems)
    out.json("pid_splits.json", pids)
    out.close()


WRITERS = {
    "okvqa": _okvqa, "textvqa": _textvqa, "ocrvqa": _ocrvqa, "gqa": _gqa,
    "flickr30k": _captions, "coco": _captions, "iconqa": _iconqa, "scienceqa": _scienceqa,
}
