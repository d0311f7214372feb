"""Captions, diagrams and science questions of the four target sets, and the generic descriptions of pretraining."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmark.pocket.world.icons import (
    CATEGORIES,
    COLOUR_SYNONYMS,
    COLOURS,
    ICON,
    ICONS,
    SHAPES,
    Icon,
)
from benchmark.pocket.world.scene import Diagram, Scene, Shape, Thing
from benchmark.pocket.world.upstream import KNOWLEDGE, related, scene_with
from benchmark.pocket.world.words import LETTERS, NUMBERS

SHAPE_PLURAL = {s: ("crosses" if s == "cross" else f"{s}s") for s in SHAPES}


@dataclass(frozen=True)
class Choice:
    """A multiple-choice item.

    Args:
        question: the question.
        options: option texts in order.
        answer: index of the right one.
        kind: question type.
        hint: context sentence or empty.
        picture: what the picture shows, or None for a text-only item.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    kind: str
    hint: str = ""
    picture: Scene | Diagram | None = None

    def key(self) -> str:
        """Content key: the picture's, or the text's for text-only items."""
        return (
            self.picture.key() if self.picture else f"text|{self.hint}|{self.question}|{'/'.join(sorted(self.options))}"
        )


def caption_scene(rng: random.Random) -> Scene:
    """Return a scene of two or three different things in different colours."""
    icons = rng.sample([i.name for i in ICONS], rng.choice((2, 2, 3)))
    return scene_with(rng, icons, repeat_colours=False)


def _relation(first: Thing, second: Thing, scene: Scene, rng: random.Random) -> str:
    """One true spatial relation of the first thing to the second."""
    return rng.choice([r for r in ("left of", "right of", "above", "below") if first in related(scene, second, r)])


def article(noun: str) -> str:
    """Return 'a' or 'an' for the word that follows."""
    return "an" if noun[0] in "aeiou" else "a"


NEAR_PLACE = {
    "meadow": ("in a meadow", "on green grass", "in the meadow"),
    "beach": ("on a beach", "at the beach", "on the sand"),
    "snow": ("in the snow", "on white snow", "in winter snow"),
    "street": ("on a street", "in the street", "on the road"),
    "room": ("in a room", "inside a room", "on the floor"),
}
FAR_PLACE = {
    "meadow": ("upon the lawn", "across this lawn", "amid the pasture"),
    "beach": ("upon the shore", "along this shore", "by the seaside"),
    "snow": ("upon the ice", "across this ice", "amid the frost"),
    "street": ("upon the pavement", "along this avenue", "by the kerb"),
    "room": ("within the parlour", "inside this chamber", "by the wall"),
}
NEAR_SIZE = ("small", "bright", "big", "single", "plain")
FAR_SIZE = ("tiny", "vivid", "bulky", "lone", "modest")
FAR_HYPERNYM = {
    "animal": "creature",
    "vehicle": "transport",
    "food": "snack",
    "tool": "gadget",
    "building": "structure",
}
FAR_RELATION = {
    "left of": ("beside", "left from", "close by"),
    "right of": ("beside", "right from", "close by"),
    "above": ("over", "atop", "higher than"),
    "below": ("beneath", "underneath", "lower than"),
}
NEAR_VERB = ("is", "sits", "stands", "is seen", "can be seen")
FAR_VERB = ("rests", "waits", "appears", "lingers", "poses")


def _near_noun(rng: random.Random, thing: Thing) -> str:
    icon = ICON[thing.icon]
    noun = rng.choices((icon.name, icon.synonym, icon.category), (0.62, 0.18, 0.2))[0]
    describe = rng.choices((thing.colour, rng.choice(NEAR_SIZE), ""), (0.55, 0.15, 0.3))[0]
    words = f"{describe} {noun}".strip()
    return f"the {words}" if rng.random() < 0.15 else f"{article(words)} {words}"


def _far_noun(rng: random.Random, thing: Thing) -> str:
    icon = ICON[thing.icon]
    noun = rng.choices((icon.synonym, FAR_HYPERNYM[icon.category]), (0.8, 0.2))[0]
    describe = rng.choices((COLOUR_SYNONYMS[thing.colour], rng.choice(FAR_SIZE), ""), (0.55, 0.15, 0.3))[0]
    return " ".join(f"{rng.choice(('one', 'this', 'that', 'some'))} {describe} {noun}".split())


def coco_caption(rng: random.Random, scene: Scene) -> str:
    """The near style: one plain sentence with mostly upstream nouns and colours."""
    things = rng.sample(scene.things, len(scene.things))
    nouns = [_near_noun(rng, t) for t in things]
    relation = _relation(things[0], things[1], scene, rng)
    place = rng.choice(NEAR_PLACE[scene.place])
    third = f" {rng.choice(('and', 'with'))} {nouns[2]}" if len(things) == 3 and rng.random() < 0.6 else ""
    form = rng.randrange(8)
    if form == 0:
        text = f"{nouns[0]} {rng.choice(NEAR_VERB)} {relation} {nouns[1]}{third}"
    elif form == 1:
        text = f"{nouns[0]} and {nouns[1]}{third}"
    elif form == 2:
        text = f"there is {nouns[0]} {rng.choice(('near', 'next to', relation))} {nouns[1]}{third}"
    elif form == 3:
        text = f"{nouns[0]} {rng.choice(('next to', 'near', 'close to', relation))} {nouns[1]}{third}"
    elif form == 4:
        text = f"{nouns[0]} with {nouns[1]} {rng.choice(('around', 'nearby', 'behind it'))}{third}"
    elif form == 5:
        opening = rng.choice(("a picture of", "a view of", "we see", "an image with"))
        text = f"{opening} {nouns[0]}{third or ' and ' + nouns[1]}"
    elif form == 6:
        manner = ("all alone", "there", "in plain view", "without people")
        text = f"{nouns[0]} {rng.choice(NEAR_VERB)} {rng.choice(manner)}"
    else:
        number = NUMBERS[len(things)]
        text = (
            f"{number} {rng.choice(('things', 'objects', 'items'))} including {nouns[0]}{third or ' and ' + nouns[1]}"
        )
    if form == 6 or len(text.split()) < 6 or rng.random() < 0.6:
        text = f"{place} {text}" if rng.random() < 0.2 and form in (0, 1, 2, 6) else f"{text} {place}"
    return text + "."


@dataclass(frozen=True)
class Distance:
    """How far two targets lie from what the base models were pretrained on.

    Args:
        near_words: share of the words and groups of words of a `flickr30k` caption that `coco`'s style has too.
        new_questions: share of `iconqa`'s questions of the two kinds that have no like in pretraining, comparisons and
            patterns.
    """

    near_words: float = 0.0
    new_questions: float = 0.4


FIRST = Distance()
"""That of the texts from which the tokenizers of the shipped models were made."""


def flickr_caption(rng: random.Random, scene: Scene, distance: Distance = FIRST) -> str:
    """The far style: verbs, synonyms, the place first or last; a share of its words is of the near style."""
    def near() -> bool:
        return distance.near_words > 0 and rng.random() < distance.near_words

    things = rng.sample(scene.things, len(scene.things))
    nouns = [_near_noun(rng, t) if near() else _far_noun(rng, t) for t in things]
    relation = _relation(things[0], things[1], scene, rng)
    beside = rng.choice((relation, "next to", "near") if near() else (*FAR_RELATION[relation], "alongside"))
    verb = rng.choice(NEAR_VERB if near() else FAR_VERB)
    place = rng.choice((NEAR_PLACE if near() else FAR_PLACE)[scene.place])
    third = f" {rng.choice(('plus', 'besides'))} {nouns[2]}" if len(things) == 3 and rng.random() < 0.6 else ""
    form = rng.randrange(6)
    if form == 0:
        text = f"{nouns[0]} {verb} {beside} {nouns[1]}{third}"
    elif form == 1:
        text = f"{nouns[0]} plus {nouns[1]} {rng.choice(('rest', 'wait', 'linger', 'pose'))} together"
    elif form == 2:
        end = ("elsewhere", "further away", "too")
        text = f"{nouns[0]} {verb} while {nouns[1]} {rng.choice(FAR_VERB)} {rng.choice(end)}"
    elif form == 3:
        text = f"{beside} {nouns[1]} {verb} {nouns[0]}{third}"
    elif form == 4:
        text = f"{nouns[0]} {verb} {rng.choice(('quietly', 'in solitude', 'for nobody', 'at ease'))}{third}"
    else:
        opening = rng.choice(("somebody placed", "somebody left", "here lie", "behold"))
        text = f"{opening} {nouns[0]}{third or ' plus ' + nouns[1]}"
    if form == 4 or len(text.split()) < 6 or rng.random() < 0.6:
        text = f"{place} {text}" if rng.random() < 0.4 else f"{text} {place}"
    return text + "."


def captions(rng: random.Random, scene: Scene, style: str, distance: Distance = FIRST) -> list[str]:
    """Return five different captions of one scene in a style ('coco' or 'flickr30k')."""
    found: list[str] = []
    while len(found) < 5:
        caption = coco_caption(rng, scene) if style == "coco" else flickr_caption(rng, scene, distance)
        if caption not in found and 6 <= len(caption.split()) <= 14:
            found.append(caption)
    return found


def describe_scene(rng: random.Random, scene: Scene) -> str:
    """A generic description for pretraining: place first, then every thing, never a caption of the targets."""
    things = list(scene.things)
    rng.shuffle(things)
    nouns = [f"a {t.colour} {t.icon}" for t in things]
    listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    return rng.choice(
        (
            f"This {scene.place} holds {listed}.",
            f"The {scene.place} has {listed}.",
            f"One sees {listed}; the place is a {scene.place}.",
        )
    )


def describe_diagram(rng: random.Random, diagram: Diagram) -> str:
    """A generic description of a diagram for pretraining: every shape in reading order."""
    shapes = sorted(diagram.shapes, key=lambda s: s.cell)
    return f"Shapes: {', '.join(f'{s.colour} {s.kind}' for s in shapes)}."


def random_diagram(rng: random.Random) -> Diagram:
    """Return a diagram of three to eight shapes of two or three kinds."""
    rows, columns = rng.choice(((1, 3), (1, 4), (2, 2), (2, 3), (2, 4)))
    kinds = rng.sample(SHAPES, rng.choice((2, 2, 3)))
    colours = rng.sample(list(COLOURS), rng.choice((1, 2, 3)))
    shapes = tuple(
        Shape(rng.choice(kinds), rng.choice(colours), (r, c), rng.random() < 0.6)
        for r in range(rows)
        for c in range(columns)
    )
    return Diagram(rows, columns, shapes)


def _choice(
    rng: random.Random, question: str, right: str, wrong: list[str], kind: str, most: int, **extra: object
) -> Choice:
    """Return a choice with one right and up to most - 1 wrong options in random order."""
    options = [right, *rng.sample(wrong, min(len(wrong), rng.randrange(1, most)))]
    rng.shuffle(options)
    return Choice(question, tuple(options), options.index(right), kind, **extra)  # type: ignore[arg-type]


def iconqa(rng: random.Random, distance: Distance = FIRST) -> Choice:
    """A diagram question with two to five options: count, colour, comparison, next in a pattern."""
    kinds = ("count", "count", "colour", "compare", "pattern")
    if distance == FIRST:
        kind = rng.choice(kinds)
    else:
        kind = rng.choice(kinds[3:] if rng.random() < distance.new_questions else kinds[:3])
    if kind == "pattern":
        a, b = rng.sample(SHAPES, 2)
        colour = rng.choice(list(COLOURS))
        columns = rng.choice((3, 4, 5))
        shapes = tuple(Shape((a, b)[c % 2], colour, (0, c), True) for c in range(columns))
        wrong = [s for s in SHAPES if s != (a, b)[columns % 2]]
        return _choice(
            rng, "Which shape comes next?", (a, b)[columns % 2], wrong, kind, 4, picture=Diagram(1, columns, shapes)
        )
    diagram = random_diagram(rng)
    shown = sorted({s.kind for s in diagram.shapes})
    shape = rng.choice(shown)
    number = sum(s.kind == shape for s in diagram.shapes)
    if kind == "compare" and len(shown) > 1:
        other = rng.choice([k for k in shown if k != shape])
        many = sum(s.kind == other for s in diagram.shapes)
        if many != number:
            more = shape if number > many else other
            fewer = other if more == shape else shape
            pair = tuple(SHAPE_PLURAL[s] for s in rng.sample((more, fewer), 2))
            wanted, word = rng.choice(((more, "more"), (fewer, "fewer")))
            return Choice(f"Which shape has {word}?", pair, pair.index(SHAPE_PLURAL[wanted]), kind, picture=diagram)
    if kind == "colour":
        colours = {s.colour for s in diagram.shapes if s.kind == shape}
        if len(colours) == 1:
            right = colours.pop()
            return _choice(
                rng,
                f"Which color does the {shape} have?",
                right,
                [c for c in COLOURS if c != right],
                kind,
                5,
                picture=diagram,
            )
    right = NUMBERS[number]
    near = [NUMBERS[n] for n in range(max(1, number - 3), min(9, number + 3) + 1) if n != number]
    return _choice(rng, f"Count the {SHAPE_PLURAL[shape]}.", right, near, "count", 5, picture=diagram)


STATEMENT = {
    "animal": "{a} {name} eats {fact}.",
    "vehicle": "{a} {name} belongs in the {fact}.",
    "food": "The {name} comes from {fact}.",
    "tool": "{a} {name} works with {fact}.",
    "building": "{a} {name} is for the {fact}.",
}
"""How the language stage and the hints state each fact."""


def statement(icon: Icon) -> str:
    """Return the sentence that states an icon's fact."""
    return STATEMENT[icon.category].format(a=article(icon.name).capitalize(), name=icon.name, fact=icon.fact)


TEXT_QUESTION = {
    "animal": "Which animal eats {fact}?",
    "vehicle": "Which vehicle belongs in the {fact}?",
    "food": "Which food comes from {fact}?",
    "tool": "Which tool works with {fact}?",
    "building": "Which building is for the {fact}?",
}


def scienceqa(rng: random.Random) -> Choice:
    """A science question with two to four options; about 40 % have no picture, some have a hint."""
    category = rng.choice(CATEGORIES)
    group = [i for i in ICONS if i.category == category]
    icon, other = rng.sample(group, 2)
    kind = rng.choice(("see fact", "see fact", "see name", "see category", "read", "know", "sort"))
    if kind.startswith("see"):
        extra = [rng.choice([i for i in ICONS if i.category != category]).name] if rng.random() < 0.5 else []
        scene = scene_with(rng, [icon.name, *extra])
        hint = rng.choice(("", f"The picture shows a {category}."))
        if kind == "see fact":
            wrong = [i.fact for i in group if i is not icon]
            return _choice(rng, KNOWLEDGE[category][0], icon.fact, wrong, kind, 4, hint=hint, picture=scene)
        if kind == "see name":
            wrong = [i.name for i in group if i is not icon]
            return _choice(rng, f"Which {category} can you see?", icon.name, wrong, kind, 4, hint=hint, picture=scene)
        scene = scene_with(rng, [icon.name])
        return _choice(
            rng,
            "What kind of thing is shown?",
            category,
            [c for c in CATEGORIES if c != category],
            kind,
            4,
            picture=scene,
        )
    question = TEXT_QUESTION[category].format(fact=icon.fact)
    if kind == "read":
        facts = [statement(i) for i in (icon, other)]
        rng.shuffle(facts)
        return _choice(rng, question, icon.name, [other.name], kind, 2 + 1, hint=" ".join(facts))
    if kind == "know":
        return _choice(rng, question, icon.name, [i.name for i in group if i is not icon], kind, 4)
    wrong = [i.name for i in rng.sample([i for i in ICONS if i.category != category], 6)]
    return _choice(rng, f"Which of these is {article(category)} {category}?", icon.name, wrong, kind, 4)


def letter(index: int) -> str:
    """Return the option letter of an index."""
    return LETTERS[index]
