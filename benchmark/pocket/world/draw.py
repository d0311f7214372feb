"""Write the eight drawn datasets in the official layouts of their counterparts, deterministically."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.core.errors import UserError
from benchmark.core.files import unfinished_folder, write_atomic
from benchmark.pocket.world import icons, targets, upstream
from benchmark.pocket.world.scene import Cover, Diagram, Scene
from benchmark.pocket.world.splits import TARGETS, UPSTREAM, owner
from benchmark.pocket.world.targets import FIRST, Choice, Distance, captions, letter
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
Entry = dict[str, Any]
Stamp = dict[str, Any]
Progress = Callable[[int, int, str], None]


def candidates(
    dataset: str, split: str, distance: Distance = FIRST, seed: str | None = None
) -> Iterator[tuple[Picture | None, Any, random.Random]]:
    """Yield the endless, seeded stream of a data set's items in one split.

    Args:
        dataset: one of the eight, or 'describe' (pretraining's generic descriptions).
        split: train, validation or test.
        distance: of the targets from pretraining.
        seed: of the stream; None: that of the data set and split.

    Returns:
        (picture or None, item, generator for drawing): the item is a list of questions (upstream), a Choice, or for
        captions and descriptions the picture itself. Only contents that (dataset, split) owns are yielded; contents
        repeat only where the space is small.
    """
    rng = random.Random(seed or f"{dataset}/{split}")
    while True:
        if dataset in UPSTREAM:
            picture, item = getattr(upstream, dataset)(rng)
            key = picture.key()
        elif dataset in ("iconqa", "scienceqa"):
            item = targets.iconqa(rng, distance) if dataset == "iconqa" else targets.scienceqa(rng)
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


def distinct(
    dataset: str, split: str, distance: Distance = FIRST
) -> Iterator[tuple[Picture | None, Any, random.Random, str]]:
    """Yield the items of `candidates` whose content key is new, with the key."""
    seen: set[str] = set()
    misses = 0
    for picture, item, rng in candidates(dataset, split, distance):
        with_key = item if isinstance(item, Choice) else picture
        assert with_key is not None  # only a Choice may have no picture
        key = with_key.key()
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
    version = code_version()
    for index, name in enumerate(names):
        if on_progress:
            on_progress(index, len(names), name)
        draw_dataset(name, Path(root) / name, {"version": version, "counts": COUNTS[name]}, WRITERS[name])
    if on_progress:
        on_progress(len(names), len(names), "done")


def draw_dataset(name: str, folder: Path, stamp: Stamp, write: Callable[[Path, str], None]) -> None:
    """Draw a dataset that is missing or has another stamp; an interruption leaves nothing half-written.

    Args:
        name: of the dataset.
        folder: its folder.
        stamp: what it was drawn from, kept in drawn.json.
        write: called with an empty folder and the name.

    Raises:
        UserError: the folder cannot be written, or holds files of the user.
    """
    if is_drawn(folder, stamp):
        return
    if folder.exists() and not (folder / "drawn.json").exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files that this program did not write. Move them away or choose another data_root."
        )
    drawn, old = (folder.with_name(f".{name}.{os.getpid()}{end}") for end in ("", ".old"))
    try:
        with unfinished_folder(drawn), unfinished_folder(old):
            drawn.mkdir()
            write(drawn, name)
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
    folder = Path(__file__).parent
    for name in ("icons", "scene", "splits", "targets", "upstream", "words", "draw"):
        total.update((folder / f"{name}.py").read_bytes())
    total.update("".join(version(p) for p in ("pillow", "matplotlib", "fonticon-fontawesome6")).encode())
    return total.hexdigest()[:16]


def is_drawn(folder: Path, stamp: Stamp) -> bool:
    """Return whether a dataset's folder is complete and has this stamp."""
    try:
        return json.loads((folder / "drawn.json").read_text(encoding="utf-8")) == stamp
    except (OSError, ValueError):
        return False


class Folder:
    """Collects a dataset's pictures and content keys while its writer runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys: dict[str, dict[str, str]] = {split: {} for split in SPLITS}

    def picture(self, path: str, picture: Picture, rng: random.Random) -> None:
        """Draw and save a picture below the folder."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image: Image.Image = picture.draw(rng)
        if path.endswith(".jpg"):
            image.save(target, quality=95, subsampling=0)
        else:
            image.save(target, compress_level=1)

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
        assert picture is not None
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
    out = Folder(root)
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
    out = Folder(root)
    for split, official in (("train", "train"), ("validation", "minival"), ("test", "val")):
        asked, read = [], []
        for number, picture, questions, rng, key in _questions(name, split):
            image_id = f"{BASE[split] + number:x}"
            out.picture(f"train_images/{image_id}.jpg", picture, rng)
            out.keys[split][image_id] = key
            (question,) = questions
            assert isinstance(picture, Scene)
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
    out = Folder(root)
    books = {}
    for split, official in (("train", 1), ("validation", 2), ("test", 3)):
        for number, cover, questions, rng, key in _questions(name, split):
            book = str(BASE[split] + number)
            assert isinstance(cover, Cover)
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
    out = Folder(root)
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


OFFICIAL = {"train": "train", "validation": "val", "test": "test"}
"""Split -> its name in the files of the targets."""


def _target(root: Path, name: str) -> None:
    out = Folder(root)
    target_index(out, name, {split: target_split(out, name, split, COUNTS[name][split]) for split in SPLITS})
    out.close()


def target_split(out: Folder, name: str, split: str, count: int, distance: Distance = FIRST) -> list[Entry]:
    """Write the first items of a split of a target, all different, and return their entries in the target's index.

    Args:
        out: the target's folder; gets their content keys.
        name: target.
        split: train, validation or test.
        count: number of items.
        distance: of the target from pretraining.
    """
    entries = []
    for number, (picture, item, rng, key) in enumerate(islice(distinct(name, split, distance), count), BASE[split]):
        entries.append(target_item(out, name, split, number, picture, item, rng, distance))
        out.keys[split][str(number)] = key
    return entries


def target_item(
    out: Folder, name: str, split: str, number: int, picture: Picture | None, item: Any, rng: random.Random,
    distance: Distance,
) -> Entry:
    """Write the files of one item of a target and return its entry in the target's index.

    Args:
        out: the target's folder.
        name: target.
        split: train, validation or test.
        number: of the item, unique in the target.
        picture: what it shows, or None.
        item: a Choice, or for captions the picture.
        rng: of the item.
        distance: of the target from pretraining.
    """
    official = OFFICIAL[split]
    if name in ("flickr30k", "coco"):
        rows = [{"tokens": text.rstrip(".").split(), "raw": text, "imgid": number}
                for text in captions(rng, item, name, distance)]
        entry: Entry = {"imgid": number, "sentences": rows, "split": official}
        if name == "coco":
            folder = "train2014" if split == "train" else "val2014"
            entry |= {"filepath": folder, "cocoid": number, "filename": f"COCO_{folder}_{number:012d}.jpg"}
        else:
            folder = "flickr30k-images"
            entry |= {"filename": f"{number}.jpg"}
        out.picture(f"{folder}/{entry['filename']}", item, rng)
        return entry
    if name == "iconqa":
        entry = {
            "question": item.question, "choices": list(item.options), "answer": item.answer,
            "ques_type": "choose_txt", "grade": "prek", "label": item.kind,
        }
        folder = f"iconqa_data/iconqa/{official}/choose_txt/{number}"
        assert picture is not None
        out.picture(f"{folder}/image.png", picture, rng)
        out.json(f"{folder}/data.json", entry)
        return {**entry, "split": official, "number": number}
    if picture is not None:
        out.picture(f"images/{official}/{number}/image.png", picture, rng)
    return {
        "question": item.question, "choices": list(item.options), "answer": item.answer, "hint": item.hint,
        "image": "image.png" if picture is not None else None, "task": "closed choice", "grade": "grade2",
        "subject": "natural science", "topic": item.kind, "category": item.kind, "skill": item.kind,
        "lecture": "", "solution": f"The answer is {letter(item.answer)}.", "split": official, "number": number,
    }


def target_index(out: Folder, name: str, entries: Mapping[str, Sequence[Entry]]) -> None:
    """Write the files of a target that list all its items.

    Args:
        out: the target's folder.
        name: target.
        entries: of `target_item`, in order, by split.
    """
    every = [entry for split in SPLITS for entry in entries[split]]
    if name in ("flickr30k", "coco"):
        sentences = [row for entry in every for row in entry["sentences"]]
        for number, row in enumerate(sentences):
            row["sentid"] = number
        for entry in every:
            entry["sentids"] = [row["sentid"] for row in entry["sentences"]]
        out.json(f"dataset_{name}.json", {"images": every, "dataset": name})
        return
    numbers = {split: [str(entry["number"]) for entry in entries[split]] for split in SPLITS}
    problems = {str(entry["number"]): {key: entry[key] for key in entry if key != "number"} for entry in every}
    folder, kind = ("iconqa_data/", "choose_txt_") if name == "iconqa" else ("", "")
    out.json(f"{folder}problems.json", problems)
    out.json(f"{folder}pid_splits.json", {f"{kind}{OFFICIAL[split]}": numbers[split] for split in SPLITS})


WRITERS = {
    "okvqa": _okvqa, "textvqa": _textvqa, "ocrvqa": _ocrvqa, "gqa": _gqa,
    **dict.fromkeys(TARGETS, _target),
}
