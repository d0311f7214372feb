"""What each stage of pretraining shows, and how many steps of it each shipped model takes."""

from __future__ import annotations

from dataclasses import dataclass

COVERS = {"okvqa": 5, "textvqa": 15, "ocrvqa": 60, "gqa": 10, "describe": 10}
MATCHING = {"okvqa": 15, "textvqa": 35, "ocrvqa": 5, "gqa": 40, "describe": 5}
CHOICES = {"okvqa": 12, "textvqa": 10, "gqa": 15, "describe": 8, "text": 55}


@dataclass(frozen=True)
class Stage:
    """A stage that trains projector and language model on conversations.

    Args:
        name: part of the data seed; a recipe has its length as <name>_steps.
        shows: what the conversations have, for the model card: "... pictures with ...".
        mixture: pictures per source in percent; text has no picture.
        learning_rate: peak.
        pictures: per step; None: the family's `batch`.
        transcripts: whether every picture comes with a transcript; the log then counts the words that are right.
        horizon: length of the cosine, see `Schedule`; None: the stage's own.
        cooldown: number of last steps over which the rate falls linearly.
        inner: whether blocks below the last have labels, see `Inner`.
        cells: whether image tokens have their cell as a label, see `Parts.loss`.
    """

    name: str
    shows: str
    mixture: dict[str, int]
    learning_rate: float = 1e-3
    pictures: int | None = None
    transcripts: bool = False
    horizon: int | None = None
    cooldown: int = 0
    inner: bool = False
    cells: bool = False


_ORDER = (
    Stage(
        "alignment", "transcripts (the content of each grid cell, in reading order)",
        {"okvqa": 15, "textvqa": 25, "ocrvqa": 20, "gqa": 25, "describe": 15}, 2e-3, pictures=16, transcripts=True,
    ),
    Stage(
        "reading", "transcripts; more of them have signs or are covers",
        {"okvqa": 10, "textvqa": 30, "ocrvqa": 30, "gqa": 15, "describe": 15}, 2e-3, pictures=16, transcripts=True,
    ),
    Stage("covers", "transcripts; most of them are covers", COVERS, 2e-3, pictures=16, transcripts=True),
    Stage(
        "matching", "short look-ups (a name and its colour, a colour and its sign, a cell and its content, whether "
        "something is there)", MATCHING, horizon=3000,
    ),
    Stage("quiz", "questions of the source sets and their answers in one text", MATCHING, horizon=1600),
    Stage(
        "letters", "lettered options, listed again in another order",
        {"okvqa": 15, "textvqa": 15, "gqa": 15, "describe": 15, "text": 40}, horizon=1200,
    ),
    Stage("choices", "lettered options and keys that mean one (a fact, a synonym, a place)", CHOICES, horizon=1500),
    Stage("more_choices", "the same, starting again at the full learning rate", CHOICES, horizon=1200),
    Stage(
        "instruction", "all their questions, descriptions (some in synonyms) and transcripts",
        {"okvqa": 14, "textvqa": 16, "ocrvqa": 14, "gqa": 28, "describe": 14, "text": 14}, horizon=1300, cooldown=250,
    ),
    Stage(
        "authors", "transcripts and two questions each; most of them are covers", COVERS, 2e-3, pictures=16,
        transcripts=True,
    ),
    Stage(
        "pointing", "lettered options, answered from the text or the picture. Letters weigh as much as all other words,"
        " and inner labels teach blocks below the last which option a letter stands for and where it is",
        {"okvqa": 15, "textvqa": 10, "ocrvqa": 6, "gqa": 27, "describe": 7, "text": 35}, horizon=1600, inner=True,
    ),
    Stage(
        "cells", "look-ups of places, and questions. Inner labels teach which cell each image token shows",
        {"okvqa": 10, "textvqa": 33, "ocrvqa": 17, "gqa": 35, "describe": 5}, horizon=1600, cells=True,
    ),
    Stage(
        "final", "all that instruction has, more to read, more lettered options and the inner labels of pointing",
        {"okvqa": 13, "textvqa": 18, "ocrvqa": 20, "gqa": 25, "describe": 12, "text": 12}, horizon=1300, cooldown=250,
        inner=True,
    ),
)
STAGES = {stage.name: stage for stage in _ORDER}
"""By name, in their order, after tokenizer, language, tower and names."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the code that determines a shipped model's weights.

    Args:
        family: a key of FAMILIES in run.py.
        image_size: side in pixels of what the tower sees of a square picture; see the family.
        seed: of the weights and the data order.
        language_steps: of 64 texts of 96 tokens; llava and vila share the stage.
        tower_steps: of the family's `tower_batch` of pictures.
        names_steps: of 96 pictures, projector only (four patches per token).
        more_choices_steps: LLaVA learns letters later than the others.
        covers_steps: Qwen reads covers late, and authors' last names (`authors_steps`) last of all.
        cells_steps: Qwen does not learn from look-ups in which cell a token is.

    The others are the steps of `STAGES`.
    """

    family: str
    image_size: int
    seed: int = 0
    language_steps: int = 360
    tower_steps: int = 2500
    names_steps: int = 0
    alignment_steps: int = 600
    reading_steps: int = 900
    covers_steps: int = 0
    matching_steps: int = 1500
    quiz_steps: int = 1200
    letters_steps: int = 700
    choices_steps: int = 1000
    more_choices_steps: int = 0
    instruction_steps: int = 900
    authors_steps: int = 0
    pointing_steps: int = 500
    cells_steps: int = 0
    final_steps: int = 700

    def steps(self, stage: Stage) -> int:
        """Return the length of a stage."""
        return getattr(self, f"{stage.name}_steps")


RECIPES = {
    "llava_pocket": Recipe("llava", 96, more_choices_steps=700),
    "vila_pocket": Recipe("vila", 112, names_steps=800),
    # For two cores without bfloat16 (about 80 minutes): half the rows in most steps, fewer of most steps. With no more
    # than 97 x 97 pixels a scene shrinks to 84 x 84, so each cell of its grid is one token; a cover stays as drawn.
    "qwen_pocket": Recipe(
        "qwen", 97, language_steps=260, tower_steps=2300, names_steps=400, alignment_steps=1800, reading_steps=2400,
        covers_steps=1400, matching_steps=2000, quiz_steps=1000, letters_steps=300, choices_steps=400,
        instruction_steps=700, authors_steps=800, pointing_steps=500, cells_steps=800, final_steps=500,
    ),
}
