"""The reader that Flickr30k and COCO share: captions in Karpathy's split files (Karpathy and Fei-Fei 2015)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.layout import FIX, need, read_json, render
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike


def sampled(captions: Sequence[str], image_id: str, count: int, seed: int) -> list[int]:
    """Choose the `count` captions of an image to train on, by a hash of seed, image and position.

    Args:
        captions: all captions of the image.
        image_id: official id of the image; the choice depends on no other image.
        count: number of captions; more than there are means all.
        seed: seed of the choice.

    Returns:
        Positions; the first one is the choice for count 1.
    """
    def rank(index: int) -> str:
        return hashlib.sha256(f"{seed}\0{image_id}\0{index}".encode()).hexdigest()

    return sorted(range(len(captions)), key=rank)[:count]


def _drawn(prompts: Sequence[str], image_id: str, position: int, seed: int) -> str:
    """Choose one of several prompts; the choice for an item never changes."""
    place = hashlib.sha256(f"prompt\0{seed}\0{image_id}\0{position}".encode()).digest()
    return prompts[int.from_bytes(place[:8], "big") % len(prompts)]


def karpathy(
    path: Path, names: Sequence[str], id_key: str, image_of: Callable[[dict[str, Any]], Path],
    split: str, spec: DatasetLike,
) -> list[Record]:
    """Read caption records from a Karpathy file.

    Evaluation splits give one record per image with all captions as references. The training split gives
    `options.captions_per_image` (default 1) records per image, each with one caption as its target, chosen
    by `sampled` with `options.caption_seed` (default 0). `options.train_prompts` lists prompts for training records;
    a hash of seed, image and caption chooses one for each record.

    Args:
        path: dataset_*.json.
        names: official splits to take.
        id_key: key of the image's id.
        image_of: function from an image's entry to its file.
        split: train, validation or test.
        spec: the prompt has no fields.

    Returns:
        Records in file order. The item id is the image's id, in training followed by '_<position of the caption>'.

    Raises:
        UserError: the file or a key is missing, or an image has no captions.
    """
    count, seed = spec.options.get("captions_per_image", 1), spec.options.get("caption_seed", 0)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"captions_per_image={count!r} of {spec.id} is not a count. Give 1 or more.")
    prompt, others = render(spec), spec.options.get("train_prompts") or [] if split == "train" else []
    records = []
    for number, entry in enumerate(need(read_json(path), "images", path)):
        if need(entry, "split", path, f"image {number}") not in names:
            continue
        image_id = str(need(entry, id_key, path, f"image {number}"))
        where = f"image {image_id}"
        given = check.rows(need(entry, "sentences", path, where), path, f"sentences of {where}")
        sentences = [check.text(sentence, "raw", path, f"a sentence of {where}", blank=True) for sentence in given]
        captions = tuple(" ".join(sentence.split()) for sentence in sentences)
        if not captions:
            raise UserError(f"{path}: {where} has no captions. {FIX}")
        chosen = sampled(captions, image_id, count if split == "train" else 1, seed)
        for position in chosen:
            records.append(Record(
                item_id=f"{image_id}_{position}" if split == "train" else image_id,
                dataset=spec.id,
                split=split,
                image=image_of(entry),
                prompt=_drawn(others, image_id, position, seed) if others else prompt,
                target=captions[position],
                references=captions,
                options=None,
                group=image_id,
                meta={
                    "question": prompt,
                    "question_type": "",
                    "question_id": image_id,
                    "image_id": image_id,
                },
            ))
    return records
