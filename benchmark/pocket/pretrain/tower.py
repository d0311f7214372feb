"""Vision tower: learns dense labels of drawn pictures through attention-pooled queries that are then discarded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.pocket.pretrain import group
from benchmark.pocket.pretrain.family import Family, Features, Part
from benchmark.pocket.pretrain.state import Replica, Schedule, resume, save, update
from benchmark.pocket.world.icons import COLOURS, ICONS, PLACES, SHAPES
from benchmark.pocket.world.scene import GENRES, Cover, Diagram, Scene
from benchmark.pocket.world.splits import PRETRAINING, owner
from benchmark.pocket.world.targets import caption_scene, random_diagram
from benchmark.pocket.world.upstream import Question, gqa, ocrvqa, okvqa, textvqa
from benchmark.pocket.world.words import FIRST_NAMES, LAST_NAMES, SIGN_WORDS, TITLE_FIRST, TITLE_SECOND, YEARS

NONE = 0
"""Class 0 of every head: nothing at this position."""
MAX_SHAPES = 8
HORIZON = 4000
"""Steps of the cosine. The towers are good enough before it ends, so their stage stops early, with a cool-down."""

HEADS: dict[str, tuple[int, tuple[str, ...]]] = {
    "icon": (9, tuple(i.name for i in ICONS)),
    "colour": (9, tuple(COLOURS)),
    "sign": (3, SIGN_WORDS),
    "sign_colour": (3, tuple(COLOURS)),
    "place": (1, tuple(PLACES)),
    "title_first": (1, TITLE_FIRST),
    "title_second": (1, TITLE_SECOND),
    "first_name": (1, FIRST_NAMES),
    "last_name": (1, LAST_NAMES),
    "genre": (1, tuple(GENRES)),
    "year": (1, YEARS),
    "shape": (MAX_SHAPES, SHAPES),
    "shape_colour": (MAX_SHAPES, tuple(COLOURS)),
}
"""Head -> (number of positions, names of the classes after class 0)."""
Labels = dict[str, Tensor]
"""Head -> class of each position, (pictures, positions)."""


def labels_of(picture: Scene | Cover | Diagram) -> dict[str, list[int]]:
    """Return the class index of every head at every position."""
    labels = {name: [NONE] * count for name, (count, _) in HEADS.items()}

    def put(head: str, position: int, value: str) -> None:
        labels[head][position] = HEADS[head][1].index(value) + 1

    if isinstance(picture, Scene):
        put("place", 0, picture.place)
        for thing in picture.things:
            position = thing.cell[0] * 3 + thing.cell[1]
            put("icon", position, thing.icon)
            put("colour", position, thing.colour)
        for sign in picture.signs:
            put("sign", sign.row, sign.word)
            put("sign_colour", sign.row, sign.colour)
    elif isinstance(picture, Cover):
        put("title_first", 0, picture.title[0])
        put("title_second", 0, picture.title[1])
        put("first_name", 0, picture.author[0])
        put("last_name", 0, picture.author[1])
        put("genre", 0, picture.genre)
        put("year", 0, picture.year)
    else:
        for position, shape in enumerate(sorted(picture.shapes, key=lambda s: s.cell)[:MAX_SHAPES]):
            put("shape", position, shape.kind)
            put("shape_colour", position, shape.colour)
    return labels


def random_picture(rng: random.Random) -> Scene | Cover | Diagram:
    """Return a random picture: a scene, a scene with signs, a cover or a diagram."""
    kind = rng.choices(("gqa", "okvqa", "caption", "textvqa", "ocrvqa", "diagram"), (26, 10, 8, 22, 24, 10))[0]
    if kind == "caption":
        return caption_scene(rng)
    if kind == "diagram":
        return random_diagram(rng)
    makers: dict[str, Callable[[random.Random], tuple[Scene | Cover, list[Question]]]] = {
        "gqa": gqa, "okvqa": okvqa, "textvqa": textvqa, "ocrvqa": ocrvqa,
    }
    return makers[kind](rng)[0]


def pictures(
    seed: str, wanted: Callable[[tuple[str, str]], bool]
) -> Iterator[tuple[Scene | Cover | Diagram, random.Random]]:
    """Yield pictures without end whose (dataset, split) is wanted, each with the generator that draws it."""
    rng = random.Random(seed)
    while True:
        picture = random_picture(rng)
        if wanted(owner(picture.key())):
            yield picture, rng


def shared_pictures(seed: str, count: int) -> Iterator[tuple[Scene | Cover | Diagram, random.Random]]:
    """Yield this process's share of a batch of pictures for pretraining, each with the generator that draws it."""
    for number in group.share(range(count)):
        yield next(pictures(f"{seed}/{number}", PRETRAINING.__contains__))


def batch_of(drawn: Iterable[tuple[Scene | Cover | Diagram, random.Random]], family: Family) -> tuple[Any, Labels]:
    """Return the family's pixels of some pictures and their labels."""
    images, labels = [], []
    for picture, rng in drawn:
        images.append(picture.draw(rng))
        labels.append(labels_of(picture))
    return family.pixels(images), {head: torch.tensor([row[head] for row in labels]) for head in HEADS}


class Readout(nn.Module):
    """One learned query per head and position attends to the patch features; one linear classifier per head.

    Args:
        hidden: width of the features.
        heads: of the attention.
        places: rows and columns that a grid may have, if features come with the place of each patch.
    """

    def __init__(self, hidden: int, heads: int = 4, places: int = 0) -> None:
        super().__init__()
        total = sum(count for count, _ in HEADS.values())
        self.queries = nn.Parameter(torch.randn(total, hidden) * 0.3)
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, len(classes) + 1) for name, (_, classes) in HEADS.items()})
        self.places = nn.ModuleList(nn.Embedding(places, hidden) for _ in range(2 if places else 0))

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return logits (batch, positions, classes + 1) per head."""
        values = self.norm(features.values)
        if features.places is not None:
            for axis, place in zip(self.places, features.places.unbind(-1), strict=True):
                values = values + axis(place)
        padding = None if features.present is None else ~features.present
        queries = self.queries.expand(len(values), -1, -1)
        pooled = queries + self.attention(queries, values, values, key_padding_mask=padding, need_weights=False)[0]
        pooled = pooled + self.mlp(pooled)
        counts = [count for count, _ in HEADS.values()]
        return {name: self.heads[name](part) for name, part in zip(HEADS, pooled.split(counts, dim=1), strict=True)}


def loss_of(logits: dict[str, Tensor], labels: Labels) -> Tensor:
    """Return this process's part of the cross-entropy, summed over heads; empty positions weigh a tenth.

    It is the mean over the pictures of all processes.
    """
    total = torch.zeros(())
    for name, scores in logits.items():
        wanted = labels[name]
        weight = torch.where(wanted == NONE, 0.1, 1.0)
        each = F.cross_entropy(scores.flatten(0, 1).float(), wanted.flatten(), reduction="none").view_as(weight)
        total = total + (each * weight).sum()
    return total / group.total(len(labels["icon"]))


@torch.inference_mode()
def probe(tower: Part, readout: Readout, family: Family, size: int = 1024) -> dict[str, float]:
    """Return the accuracy in % on held-out pictures: per head over non-empty positions, and per 'icon/<name>'."""
    tower.eval(), readout.eval()
    stream = pictures("probe", lambda who: who == ("probe", "test"))
    right: dict[str, list[float]] = {}
    for _ in range(size // 128):
        pixels, labels = batch_of(islice(stream, 128), family)
        logits = readout(family.features(tower, pixels, torch.float32))
        for name, scores in logits.items():
            wanted = labels[name]
            hit = (scores.argmax(-1) == wanted)[wanted != NONE].float()
            right.setdefault(name, []).extend(hit.tolist())
            if name == "icon":
                for value, label in zip(hit.tolist(), wanted[wanted != NONE].tolist(), strict=True):
                    right.setdefault(f"icon/{HEADS['icon'][1][label - 1]}", []).append(value)
    tower.train(), readout.train()
    return {name: 100 * sum(hits) / len(hits) for name, hits in right.items()}


def train(
    tower: Part,
    family: Family,
    out: Path,
    steps: int,
    seed: int,
    batch: int | None = None,
    learning_rate: float = 1.5e-3,
    log: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train a tower from its initial weights, or from the checkpoint in `out`, and probe it.

    Args:
        tower: changed in place.
        family: the tower's.
        out: folder of the stage's checkpoint.
        steps: optimizer steps.
        seed: of pictures and weights.
        batch: pictures per step; None: the family's.
        learning_rate: peak of the cosine schedule.
        log: called with one line every 100 steps.

    Returns:
        Accuracy in % per head and per icon, on pictures that no dataset contains.
    """
    torch.manual_seed(seed)
    readout = Readout(tower.config.hidden_size, places=family.places)
    parts: dict[str, nn.Module] = {"tower": tower, "readout": readout}
    parameters = [p for part in parts.values() for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    schedule = Schedule(learning_rate, steps, warmup=150, horizon=HORIZON, cooldown=500)
    step = resume(out, parts, optimizer)
    low = Replica(parts, family.dtype)
    running = 0.0
    while step < steps:
        pixels, labels = batch_of(shared_pictures(f"tower/{seed}/{step}", batch or family.tower_batch), family)
        schedule.apply(optimizer, step)
        loss = loss_of(low.parts["readout"](family.features(low.parts["tower"], pixels, family.dtype)), labels)
        update(loss, parameters, optimizer, low)
        step += 1
        running += loss.item()
        if step % 100 == 0 or step == steps:
            scores = probe(tower, readout, family, 256) if step % 500 == 0 else {}
            shown = " ".join(f"{name} {value:.0f}" for name, value in scores.items() if "/" not in name)
            log(f"tower step {step}/{steps} loss {group.total(running) / 100:.3f} {shown}")
            running = 0.0
            if step % 500 == 0:
                save(out, parts, optimizer, step)
    save(out, parts, optimizer, steps)
    return probe(tower, readout, family)
