"""Which contents each split of the eight sets owns, as endless seeded streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from benchmark.core.errors import UserError
from benchmark.pocket.world import icons, targets, upstream
from benchmark.pocket.world.scene import Cover, Diagram, Scene
from benchmark.pocket.world.splits import UPSTREAM, owner
from benchmark.pocket.world.targets import FIRST, Choice, Distance

Picture = Scene | Cover | Diagram


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
