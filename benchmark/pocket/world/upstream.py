"""Questions of the four upstream sets and the generic descriptions that pretraining also sees.

Every generator takes a seeded `random.Random` and returns a picture's content with its questions; `draw.py` decides
by the content's key which (data set, split) may keep it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmark.pocket.world.icons import CATEGORIES, COLOURS, ICON, ICONS, PLACES
from benchmark.pocket.world.scene import COLUMNS, GENRES, ROWS, Cover, Scene, Sign, Thing, random_font, random_thing
from benchmark.pocket.world.words import (
    FIRST_NAMES,
    LAST_NAMES,
    NUMBERS,
    SIGN_WORDS,
    TITLE_FIRST,
    TITLE_SECOND,
    YEARS,
)

Picture = Scene | Cover
CELLS = tuple((row, column) for row in range(3) for column in range(3))


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Args:
        text: the question, without the format instruction.
        answer: the short answer.
        kind: question type, reported as a group of its own.
        answers: ten annotator answers where the set has them.
        ocr: noisy OCR tokens where the protocol has them.
    """

    text: str
    answer: str
    kind: str
    answers: tuple[str, ...] = ()
    ocr: tuple[str, ...] = field(default=())


KNOWLEDGE = {
    "animal": (
        "What does this animal eat?",
        "What food does the animal in the picture like?",
        "Which food would you give to the animal?",
    ),
    "vehicle": (
        "Where would you find this vehicle?",
        "Where is the vehicle in the picture usually kept?",
        "Which spot belongs to the vehicle?",
    ),
    "food": (
        "What does this food come from?",
        "What is the food in the picture made from?",
        "Which source gives us the food?",
    ),
    "tool": (
        "What is this tool used for?",
        "What does one need the tool in the picture for?",
        "Which thing goes with the tool?",
    ),
    "building": (
        "Who would you meet in this building?",
        "Who is usually inside the building in the picture?",
        "Which person belongs to the building?",
    ),
}
"""Category -> wordings of its knowledge question."""


def scene_with(rng: random.Random, icons: Sequence[str], repeat_colours: bool = True) -> Scene:
    """Return a scene with these icons in random cells and colours."""
    cells = rng.sample(CELLS, len(icons))
    names = list(COLOURS)
    colours = [rng.choice(names) for _ in icons] if repeat_colours else rng.sample(names, len(icons))
    things = tuple(random_thing(rng, i, c, cell) for i, c, cell in zip(icons, colours, cells, strict=True))
    return Scene(rng.choice(list(PLACES)), things)


def okvqa(rng: random.Random) -> tuple[Scene, list[Question]]:
    """A scene with one thing from each of one to three categories and a question on a fact that is not in it."""
    categories = rng.sample(CATEGORIES, rng.choice((1, 2, 2, 3)))
    icons = [rng.choice([i for i in ICONS if i.category == c]) for c in categories]
    scene = scene_with(rng, [i.name for i in icons])
    questions = []
    for icon in icons:
        text = rng.choice(KNOWLEDGE[icon.category])
        questions.append(Question(text, icon.fact, icon.category, annotators(rng, icon.fact, icon.alternatives)))
    rng.shuffle(questions)
    return scene, questions


def annotators(rng: random.Random, answer: str, alternatives: Sequence[str]) -> tuple[str, ...]:
    """Return ten answers: five people, each counted twice, of whom up to two say something else."""
    other = rng.choice((0, 0, 0, 0, 1, 1, 1, 2))
    people = [answer] * (5 - other) + [rng.choice(alternatives) for _ in range(other)]
    rng.shuffle(people)
    return tuple(person for person in people for _ in range(2))


def textvqa(rng: random.Random) -> tuple[Scene, list[Question]]:
    """A scene with one or two signs; the question names a sign by colour or row."""
    count = rng.choice((1, 2, 2))
    rows = rng.sample(range(3), count)
    words = rng.sample(SIGN_WORDS, count)
    colours = rng.sample(list(COLOURS), count)
    signs = tuple(
        Sign(w, c, r, random_font(rng), rng.randrange(-2, 3)) for w, c, r in zip(words, colours, rows, strict=True)
    )
    free = [cell for cell in CELLS if cell[0] not in rows]
    cells = rng.sample(free, rng.choice((1, 2)))
    things = tuple(random_thing(rng, rng.choice(ICONS).name, rng.choice(list(COLOURS)), cell) for cell in cells)
    scene = Scene(rng.choice(list(PLACES)), things, signs)
    return scene, sign_questions(rng, scene)


def sign_questions(rng: random.Random, scene: Scene) -> list[Question]:
    """Return one question per sign, with annotators' answers and a line of OCR tokens."""
    count = len(scene.signs)
    questions = []
    for sign in scene.signs:
        templates = [f"What does the {sign.colour} sign say?", f"Which word is on the {sign.colour} board?"]
        if count == 1:
            templates += ["What is written on the sign?", "What word is shown here?"]
        else:
            templates.append(f"What is written in the {ROWS[sign.row]} row?")
        answer = sign.word.lower()
        wrong = noisy(rng, answer)
        people = [answer] * 10
        for index in range(rng.choice((0, 0, 0, 1, 2))):
            people[index] = wrong if index == 0 else "unanswerable"
        rng.shuffle(people)
        questions.append(Question(rng.choice(templates), answer, "read", tuple(people), ocr_tokens(rng, sign.word)))
    return questions


def noisy(rng: random.Random, word: str) -> str:
    """Return the word with one letter lost or changed, as a poor reader would give it."""
    at = rng.randrange(len(word))
    return word[:at] + rng.choice(("", rng.choice("abcdefghijklmnopqrstuvwxyz"))) + word[at + 1 :]


def ocr_tokens(rng: random.Random, word: str) -> tuple[str, ...]:
    """Return three to six tokens; the right word is among them in half of the cases, the others are random."""
    tokens = rng.sample([w for w in SIGN_WORDS if w != word], rng.randrange(3, 7))
    if rng.random() < 0.5:
        tokens[rng.randrange(len(tokens))] = word
    return tuple(tokens)


def ocrvqa(rng: random.Random) -> tuple[Cover, list[Question]]:
    """A book cover and five questions: title, author, genre, year, and yes or no."""
    cover = Cover(
        (rng.choice(TITLE_FIRST), rng.choice(TITLE_SECOND)),
        (rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)),
        rng.choice(list(GENRES)),
        rng.choice(YEARS),
        rng.choice(list(COLOURS)),
        random_font(rng),
        rng.randrange(-1, 2),
    )
    asked = cover.genre if rng.random() < 0.5 else rng.choice([g for g in GENRES if g != cover.genre])
    questions = [
        Question("What is the title of this book?", " ".join(cover.title), "title"),
        Question("Who wrote this book?", " ".join(cover.author), "author"),
        Question("What type of book is this?", cover.genre, "genre"),
        Question("What year was this book printed?", cover.year, "year"),
        Question(f"Is this a {asked} book?", "Yes" if asked == cover.genre else "No", "yesno"),
    ]
    return cover, questions


def gqa(rng: random.Random) -> tuple[Scene, list[Question]]:
    """A scene of two to four things and several compositional questions with one right answer each."""
    count = rng.choice((2, 3, 3, 4))
    names = [i.name for i in ICONS]
    icons = rng.sample(names, count)
    if count > 2 and rng.random() < 0.5:  # twins make counting a question
        icons[1] = icons[0]
        if count == 4 and rng.random() < 0.4:
            icons[2] = icons[0]
    scene = scene_with(rng, icons)
    return scene, gqa_questions(rng, scene)


def gqa_questions(rng: random.Random, scene: Scene) -> list[Question]:
    """Return one question of each maker that the scene allows."""
    makers = [_colour, _object, _relation, _count, _place, _cell, _verify_object, _verify_colour, _verify_relation]
    return [q for maker in makers if (q := maker(rng, scene)) is not None]


def gqa_balanced(rng: random.Random, questions: list[Question], keep: int) -> list[Question]:
    """Return up to `keep` questions with about a quarter of yes or no, the rest from the other kinds."""
    verify = [q for q in questions if q.kind == "verify"]
    other = [q for q in questions if q.kind != "verify"]
    chosen = rng.sample(other, min(keep, len(other)))
    if verify and rng.random() < 0.25 * keep:
        chosen[rng.randrange(len(chosen))] = rng.choice(verify)
    return chosen


def _unique(scene: Scene) -> list[Thing]:
    """Things whose icon occurs once."""
    return [t for t in scene.things if sum(o.icon == t.icon for o in scene.things) == 1]


def _colour(rng: random.Random, scene: Scene) -> Question | None:
    things = _unique(scene)
    if not things:
        return None
    thing = rng.choice(things)
    return Question(
        rng.choice((f"What color is the {thing.icon}?", f"Which color does the {thing.icon} have?")),
        thing.colour,
        "colour",
    )


def _object(rng: random.Random, scene: Scene) -> Question | None:
    things = [t for t in scene.things if sum(o.colour == t.colour for o in scene.things) == 1]
    if not things:
        return None
    thing = rng.choice(things)
    return Question(
        rng.choice((f"What is the {thing.colour} thing?", f"Which thing is {thing.colour}?")), thing.icon, "object"
    )


def _cell(rng: random.Random, scene: Scene) -> Question:
    thing = rng.choice(scene.things)
    row, column = thing.cell
    spot = "center" if thing.cell == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"
    return Question(f"What is at the {spot}?", thing.icon, "object")


def related(scene: Scene, thing: Thing, relation: str) -> list[Thing]:
    """Things that stand in the relation ('left of', 'right of', 'above', 'below') to the given thing, by grid cell."""
    row, column = thing.cell
    test = {
        "left of": lambda o: o.cell[1] < column,
        "right of": lambda o: o.cell[1] > column,
        "above": lambda o: o.cell[0] < row,
        "below": lambda o: o.cell[0] > row,
    }[relation]
    return [o for o in scene.things if o is not thing and test(o)]


RELATIONS = ("left of", "right of", "above", "below")


def _relation(rng: random.Random, scene: Scene) -> Question | None:
    """'What is left of the X?' where exactly one thing is."""
    options = []
    for thing in _unique(scene):
        for relation in RELATIONS:
            others = related(scene, thing, relation)
            if len(others) == 1:
                options.append((relation, thing, others[0]))
    if not options:
        return None
    relation, thing, other = rng.choice(options)
    return Question(f"What is {relation} the {thing.icon}?", other.icon, "relation")


def _count(rng: random.Random, scene: Scene) -> Question:
    if rng.random() < 0.3:
        return Question("How many things are there?", NUMBERS[len(scene.things)], "count")
    thing = rng.choice(scene.things)
    number = sum(o.icon == thing.icon for o in scene.things)
    return Question(f"How many {ICON[thing.icon].plural} are there?", NUMBERS[number], "count")


def _place(rng: random.Random, scene: Scene) -> Question:
    return Question(rng.choice(("Which place is this?", "What is the background?")), scene.place, "place")


def _verify_object(rng: random.Random, scene: Scene) -> Question:
    present = {t.icon for t in scene.things}
    yes = rng.random() < 0.5
    icon = rng.choice(sorted(present)) if yes else rng.choice([i.name for i in ICONS if i.name not in present])
    return Question(f"Is there a {icon} in the picture?", "yes" if yes else "no", "verify")


def _verify_colour(rng: random.Random, scene: Scene) -> Question | None:
    things = _unique(scene)
    if not things:
        return None
    thing = rng.choice(things)
    yes = rng.random() < 0.5
    colour = thing.colour if yes else rng.choice([c for c in COLOURS if c != thing.colour])
    return Question(f"Is the {thing.icon} {colour}?", "yes" if yes else "no", "verify")


def _verify_relation(rng: random.Random, scene: Scene) -> Question | None:
    things = _unique(scene)
    if len(things) < 2:
        return None
    first, second = rng.sample(things, 2)
    true = [r for r in RELATIONS if first in related(scene, second, r)]
    false = [r for r in RELATIONS if r not in true]
    yes = rng.random() < 0.5
    relation = rng.choice(true if yes else false)
    return Question(f"Is the {first.icon} {relation} the {second.icon}?", "yes" if yes else "no", "verify")
