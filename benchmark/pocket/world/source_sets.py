"""The four source sets, in the official layouts of their counterparts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from benchmark.pocket.world import upstream
from benchmark.pocket.world.content import Picture, distinct
from benchmark.pocket.world.folder import FIRST_NUMBER, Counts, Folder
from benchmark.pocket.world.scene import Cover, Scene
from benchmark.pocket.world.upstream import Question

PER_PICTURE = {"okvqa": 1, "textvqa": 1, "ocrvqa": 2, "gqa": 3}
"""Questions kept per picture."""


def _questions(name: str, split: str, count: int) -> Iterator[tuple[int, Picture, list[Question], random.Random, str]]:
    """Yield (picture number, picture, kept questions, generator, key) until there are so many questions."""
    left = count
    for number, (picture, questions, rng, key) in enumerate(distinct(name, split)):
        assert picture is not None
        kept = kept_questions(name, questions, rng)[: min(PER_PICTURE[name], left)]
        if not kept:
            continue
        yield number, picture, kept, rng, key
        left -= len(kept)
        if left == 0:
            return


def kept_questions(name: str, questions: list[Question], rng: random.Random) -> list[Question]:
    """Return the questions of one picture that a set keeps, in random order.

    Args:
        name: source set.
        questions: all questions of the picture.
        rng: seeded generator.

    Returns:
        GQA: a balanced choice (`upstream.gqa_balanced`); the others: a random choice.
    """
    most = PER_PICTURE[name]
    if name == "gqa":
        return upstream.gqa_balanced(rng, questions, most)
    return rng.sample(questions, min(most, len(questions)))


def _okvqa(root: Path, name: str, counts: Counts) -> None:
    out = Folder(root)
    for split, official in (("train", "train2014"), ("validation", "minival2014"), ("test", "val2014")):
        asked, annotated = [], []
        for number, picture, questions, rng, key in _questions(name, split, counts[split]):
            image_id = FIRST_NUMBER[split] + number
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


def _textvqa(root: Path, name: str, counts: Counts) -> None:
    out = Folder(root)
    for split, official in (("train", "train"), ("validation", "minival"), ("test", "val")):
        asked, read = [], []
        for number, picture, questions, rng, key in _questions(name, split, counts[split]):
            image_id = f"{FIRST_NUMBER[split] + number:x}"
            out.picture(f"train_images/{image_id}.jpg", picture, rng)
            out.keys[split][image_id] = key
            (question,) = questions
            assert isinstance(picture, Scene)
            asked.append(
                {
                    "image_id": image_id, "question_id": FIRST_NUMBER[split] + number, "question": question.text,
                    "answers": list(question.answers), "set_name": official,
                    "image_classes": [t.icon for t in picture.things],
                }
            )
            read.append({"image_id": image_id, "ocr_tokens": list(question.ocr), "ocr_info": []})
        out.json(f"TextVQA_0.5.1_{official}.json", {"dataset_type": official, "data": asked})
        out.json(f"TextVQA_Rosetta_OCR_v0.2_{official}.json", {"dataset_type": official, "data": read})
    out.close()


def _ocrvqa(root: Path, name: str, counts: Counts) -> None:
    out = Folder(root)
    books = {}
    for split, official in (("train", 1), ("validation", 2), ("test", 3)):
        for number, cover, questions, rng, key in _questions(name, split, counts[split]):
            book = str(FIRST_NUMBER[split] + number)
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


def _gqa(root: Path, name: str, counts: Counts) -> None:
    out = Folder(root)
    for split, official in (("train", "train"), ("validation", "val"), ("test", "testdev")):
        asked = {}
        for number, picture, questions, rng, key in _questions(name, split, counts[split]):
            image_id = f"n{FIRST_NUMBER[split] + number}"
            out.picture(f"images/{image_id}.jpg", picture, rng)
            out.keys[split][image_id] = key
            for index, question in enumerate(questions):
                structural, semantic = GQA_TYPES[question.kind]
                asked[f"{FIRST_NUMBER[split] + number}{index}"] = {
                    "imageId": image_id, "question": question.text, "answer": question.answer,
                    "fullAnswer": f"It is {question.answer}.", "isBalanced": True,
                    "types": {"structural": structural, "semantic": semantic, "detailed": question.kind},
                }
        out.json(f"{official}_balanced_questions.json", asked)
    out.close()


WRITERS = {"okvqa": _okvqa, "textvqa": _textvqa, "ocrvqa": _ocrvqa, "gqa": _gqa}
"""Source set -> function that writes it into an empty folder."""
