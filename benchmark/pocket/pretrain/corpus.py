"""Texts for the language stage, and conversations for all later stages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmark.pocket.pretrain.stages import Stage
from benchmark.pocket.world import upstream
from benchmark.pocket.world.content import Picture, candidates
from benchmark.pocket.world.icons import CATEGORIES, COLOUR_SYNONYMS, COLOURS, ICON, ICONS, PLACES
from benchmark.pocket.world.scene import COLUMNS, ROWS, Cover, Diagram, Scene
from benchmark.pocket.world.targets import (
    FAR_HYPERNYM,
    FAR_PLACE,
    FAR_SIZE,
    NEAR_PLACE,
    NEAR_SIZE,
    article,
    describe_diagram,
    describe_scene,
    statement,
)
from benchmark.pocket.world.upstream import KNOWLEDGE, Question
from benchmark.pocket.world.words import INSTRUCTIONS, LETTERS, NUMBERS, SIGN_WORDS

BRIEF = "Answer the question using a single word or phrase."
"""The instruction of the four source sets (LLaVA's); a test compares it with their prompts."""
LETTER_INSTRUCTIONS = (
    "Reply with the letter of the correct choice.",
    "Answer with one letter.",
    "Which letter is correct? Reply with the letter.",
    "Answer with the letter of the option.",
    "Reply with the option's letter.",
)
"""Requests for a letter; no target uses any of them."""
LETTER_INSTRUCTION = LETTER_INSTRUCTIONS[0]
TRANSCRIBE = "List everything."
"""Request for a transcript: the content of each grid cell, in reading order."""
LOOK_UP = "List all things."
"""Request for look-ups: short entries, each a kind, a key and what the picture shows for that key."""
LETTERED = "List all choices."
"""Request for letter look-ups: options in random order, each with its letter."""
OTHER_WORDS = "Tell me another word for all things in view."
"""Request for a description in synonyms."""
QUIZ = "List questions and answers."
"""Request for a quiz: questions of a source set, each directly followed by its answer."""
LINKS = ("means", "equals", "is another word for", "resembles", "goes by the name of")


@dataclass(frozen=True)
class Turn:
    """One prompt and its answer, as the model sees them."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A picture, or None, with several independent turns."""

    picture: Picture | None
    turns: tuple[Turn, ...]
    seed: int


def sentence(rng: random.Random) -> str:
    """Return one sentence of the language stage: a fact, a synonym or a loose phrase, never a target's reference."""
    kind = rng.choices(("fact", "synonym", "phrase", "near"), (4, 4, 3, 2))[0]
    icon = rng.choice(ICONS)
    if kind == "fact":
        return statement(icon)
    if kind == "synonym":
        pairs = (
            (icon.synonym, icon.name),
            rng.choice(list(COLOUR_SYNONYMS.items()))[::-1],
            (FAR_HYPERNYM[icon.category], icon.category),
            (icon.name, icon.category),
            tuple(rng.choice(list(zip(FAR_SIZE, NEAR_SIZE, strict=True)))),
        )
        left, right = rng.choice(pairs)
        return f"{left} {rng.choice(LINKS)} {right}."
    if kind == "phrase":
        place = rng.choice(list(PLACES))
        colour = rng.choice(list(COLOUR_SYNONYMS.values()))
        return f"Perhaps {colour} {icon.synonym}, {rng.choice(FAR_PLACE[place])}; {place}."
    place = rng.choice(list(PLACES))
    other = rng.choice(ICONS)
    first, second = (f"{article(i.name)} {i.name}" for i in (icon, other))
    return f"Maybe {first} {rng.choice(NEAR_PLACE[place])}, then {second}."


def text_ids(tokenizer: PreTrainedTokenizerBase, seed: str, length: int, salad: float = 0.55) -> Iterator[list[int]]:
    """Yield an endless stream of token sequences for the language stage.

    Some are sentences. The rest are runs of tokens drawn uniformly from the whole vocabulary, so that every row of the
    output layer, which fine-tuning freezes, is trained often.

    Args:
        tokenizer: the stage's tokenizer.
        seed: of the stream.
        length: tokens per sequence, including <s>.
        salad: share of sequences that are random tokens.
    """
    rng = random.Random(seed)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    words = trained_ids(tokenizer)
    while True:
        ids = [bos]
        if rng.random() < salad:
            while len(ids) < length:
                ids += [*rng.choices(words, k=rng.randrange(6, 15)), eos]
        else:
            while len(ids) < length:
                ids += [*tokenizer(sentence(rng), add_special_tokens=False).input_ids, eos]
        yield ids[:length]


def trained_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids that generated text can contain: all except special tokens and bytes."""
    skip = set(tokenizer.all_special_ids)
    return [
        i
        for token, i in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])
        if i not in skip and not token.startswith("<0x")
    ]


def choice_prompt(question: str, options: list[str], request: str) -> str:
    """Return a question with lettered options and one of pretraining's letter instructions."""
    return f"{question}\n{_options(options)}\n{request}"


def _options(options: Sequence[str]) -> str:
    """Return 'A. first', 'B. second' and so on, one per line."""
    return "\n".join(f"{LETTERS[k]}. {option}" for k, option in enumerate(options))


def _letter_list(options: Sequence[str], keys: Sequence[tuple[str, str]]) -> Turn:
    """Return the turn that lists keys, each followed by the letter of its option; keys are pairs (key, option)."""
    entries = [f"{key} {LETTERS[options.index(option)]}" for key, option in keys]
    return Turn(f"{_options(options)}\n{LETTERED}", "; ".join(entries) + ".")


def letter_look_ups(rng: random.Random) -> Turn:
    """Return a text-only turn that lists lettered options again in random order, each followed by its letter.

    It is the look-up for letters: from an option to the letter in front of it.
    """
    pool = rng.choice(
        (
            [icon.name for icon in ICONS], [icon.fact for icon in ICONS], list(CATEGORIES), list(COLOURS),
            list(NUMBERS), [icon.plural for icon in ICONS], [icon.category for icon in ICONS],
        )
    )
    pool = sorted(set(pool))
    options = rng.sample(pool, rng.randrange(2, 6))
    return _letter_list(options, [(option, option) for option in rng.sample(options, len(options))])


def letter_keys(rng: random.Random) -> Turn:
    """Return a text-only turn that lists keys of lettered options, each followed by the letter of its option.

    It takes two steps: from a fact, a category or a synonym to a name (or back), and from there to a letter.
    """
    kind = rng.choice(("same", "fact", "fact", "name", "category", "synonym"))
    icons = rng.sample(ICONS, len(ICONS))
    if kind in ("fact", "name") and rng.random() < 0.5:
        first = icons[0].category
        icons.sort(key=lambda icon: icon.category != first)
    read = {
        "same": lambda icon: (icon.name, icon.name),
        "fact": lambda icon: (icon.fact, icon.name),
        "name": lambda icon: (icon.name, icon.fact),
        "category": lambda icon: (icon.name, icon.category),
        "synonym": lambda icon: (icon.synonym, icon.name),
    }[kind]
    return _listed_letters(rng, [read(icon) for icon in icons])


def letter_things(rng: random.Random, scene: Scene) -> Turn:
    """Return such a turn with keys about a scene: places, things, colors, signs."""
    kinds: list[tuple[list[tuple[str, str]], list[str]]] = []
    names, colours = [icon.name for icon in ICONS], list(COLOURS)
    single = [t for t in scene.things if sum(o.icon == t.icon for o in scene.things) == 1]
    kinds.append(([(_spot(t.cell), t.icon) for t in scene.things], names))
    kinds.append(([(t.icon, t.colour) for t in single], colours))
    kinds.append(([(t.icon, _spot(t.cell)) for t in single], [_spot((r, c)) for r in range(3) for c in range(3)]))
    kinds.append(([(t.icon, ICON[t.icon].fact) for t in single], [icon.fact for icon in ICONS]))
    kinds.append(([(_spot(t.cell), ICON[t.icon].fact) for t in scene.things], [icon.fact for icon in ICONS]))
    if scene.signs:
        kinds = [([(sign.colour, sign.word.lower()) for sign in scene.signs], [word.lower() for word in SIGN_WORDS])]
    pairs, pool = rng.choice([kind for kind in kinds if kind[0]])
    return _listed_letters(rng, pairs, pool)


def _listed_letters(rng: random.Random, pairs: list[tuple[str, str]], pool: Sequence[str] = ()) -> Turn:
    """Return a turn with two to five options, from pairs (key, option) and then from the pool; it lists the keys."""
    most = rng.randrange(2, 6)
    keys: dict[str, list[str]] = {}
    for key, option in pairs:
        if option in keys or len(keys) < most:
            keys.setdefault(option, []).append(key)
    options = list(keys)
    others = [word for word in pool if word not in keys]
    options += rng.sample(others, min(len(others), most - len(options)))
    rng.shuffle(options)
    listed = [(key, option) for option, alternatives in keys.items() for key in rng.sample(alternatives, 1)]
    rng.shuffle(listed)
    return _letter_list(options, listed)


def _lettered(rng: random.Random, question: str, answer: str, others: list[str]) -> Turn:
    options = [answer, *rng.sample(others, min(len(others), rng.randrange(1, 4)))]
    rng.shuffle(options)
    return Turn(choice_prompt(question, options, rng.choice(LETTER_INSTRUCTIONS)), LETTERS[options.index(answer)])


def knowledge_choice(rng: random.Random) -> Turn:
    """Return a text-only multiple-choice turn on a word, a category or a fact, worded unlike scienceqa."""
    icon = rng.choice(ICONS)
    group = [i for i in ICONS if i.category == icon.category and i is not icon]
    others = [i.name for i in ICONS if i.category != icon.category]
    kind = rng.choice(("word", "category", "fact", "fact"))
    if kind == "word":  # matching words comes first: a letter means nothing before the model can find options
        return _lettered(rng, f"Which word is {icon.name}?", icon.name, [i.name for i in group] + others)
    if kind == "category":
        return _lettered(rng, f"Find the {icon.category}.", icon.name, others)
    hint = ""
    if rng.random() < 0.5:
        hint = " ".join(statement(i) for i in rng.sample([icon, rng.choice(group)], 2)) + "\n"
    turn = _lettered(rng, f"Which thing goes with {icon.fact}?", icon.name, [i.name for i in group])
    return Turn(hint + turn.prompt, turn.answer)


def transcript(picture: Picture) -> str:
    """Return what a picture shows, in reading order; for a scene, two words per grid cell.

    The fixed order teaches a language model that has never seen an image to attend to image positions: the patch that a
    word needs depends only on the word's position. In questions it depends on the picture, so they come later.
    """
    if isinstance(picture, Cover):
        return " ".join((*picture.title, *picture.author, picture.genre, picture.year))
    if isinstance(picture, Diagram):
        return describe_diagram(random.Random(0), picture)
    cells = {thing.cell: thing.label for thing in picture.things}
    signs = {sign.row: f"{sign.colour} {sign.word.lower()}" for sign in picture.signs}
    words = [signs.get(row) or cells.get((row, column), "no thing") for row in range(3) for column in range(3)]
    return f"{' '.join(words)} {picture.place}"


PLACE_KEYS = ("at", "place", "row")
"""First words of the look-ups that need the cell of an image token."""


def look_ups(rng: random.Random, picture: Scene, most: int = 10, keys: Sequence[str] = ()) -> str:
    """Return entries in random order such as 'color cat red; at top left cat; is pig no; sign red stop'.

    Transcripts teach the language model to find what is at a place, but not the place of what a question names. That
    needs attention by content, which a question trains only with the one or two words of its answer. Here every third
    word is such a look-up, directly after its key.

    Args:
        rng: seeded generator.
        picture: a scene.
        most: largest number of entries.
        keys: first words of the entries; empty: all kinds.
    """
    things, entries = picture.things, []
    for thing in things:
        spot = _spot(thing.cell)
        if sum(other.icon == thing.icon for other in things) == 1:
            entries += [f"color {thing.icon} {thing.colour}", f"place {thing.icon} {spot}"]
        if sum(other.colour == thing.colour for other in things) == 1:
            entries += [f"thing {thing.colour} {thing.icon}"]
        entries += [f"at {spot} {thing.icon}", f"is {thing.icon} yes"]
        entries += [f"many {ICON[thing.icon].plural} {NUMBERS[sum(other.icon == thing.icon for other in things)]}"]
    for sign in picture.signs:
        word, row = sign.word.lower(), ROWS[sign.row]
        entries += [f"sign {sign.colour} {word}", f"row {row} {word}", f"board {word} {sign.colour}"] * 2
    present = {thing.icon for thing in things}
    absent = rng.sample([icon.name for icon in ICONS if icon.name not in present], max(1, len(things)))
    entries += [f"is {icon} no" for icon in absent]
    entries = [entry for entry in entries if not keys or entry.split()[0] in keys]
    rng.shuffle(entries)
    return "; ".join(entries[:most]) + "."


def _look_up_turns(rng: random.Random, picture: Picture, count: int, keys: Sequence[str] = ()) -> list[Turn]:
    return [Turn(LOOK_UP, look_ups(rng, picture, keys=keys)) for _ in range(count) if isinstance(picture, Scene)]


def _spot(cell: tuple[int, int]) -> str:
    return "center" if cell == (1, 1) else f"{ROWS[cell[0]]} {COLUMNS[cell[1]]}"


def quiz(rng: random.Random, name: str, picture: Picture, item: Any, most: int = 7) -> str:
    """Return questions about a picture with their answers in one text, a step between look-ups and single questions.

    Args:
        rng: seeded generator.
        name: source set or 'describe'.
        picture: a scene or a cover.
        item: the picture's questions (source sets).
        most: largest number of questions.
    """
    if name == "ocrvqa":
        pool = list(item)
    else:
        assert isinstance(picture, Scene)
        if name == "textvqa":
            pool = [q for _ in range(4) for q in upstream.sign_questions(rng, picture)]
        else:
            pool = [q for _ in range(2) for q in upstream.gqa_questions(rng, picture)]
        if name == "okvqa":
            pool += _knowledge(rng, picture)
    different = list({q.text: q for q in pool}.values())
    return " ".join(f"{q.text} {q.answer}." for q in rng.sample(different, min(most, len(different))))


def _knowledge(rng: random.Random, scene: Scene) -> list[Question]:
    """Return two wordings of the fact question for each category in a scene."""
    icons = {ICON[thing.icon].category: ICON[thing.icon] for thing in scene.things}
    return [Question(text, icons[c].fact, c) for c in icons for text in rng.sample(KNOWLEDGE[c], 2)]


def other_words(rng: random.Random, scene: Scene) -> str:
    """Return a description in synonyms, as loose as the phrases of the language stage.

    Fine-tuning freezes the output layer. A word that pretraining never says about a picture would be hard to learn.
    """
    nouns = []
    for thing in rng.sample(scene.things, len(scene.things)):
        icon = ICON[thing.icon]
        noun = icon.synonym if rng.random() < 0.8 else FAR_HYPERNYM[icon.category]
        nouns.append(f"{COLOUR_SYNONYMS[thing.colour]} {noun}")
    return f"Perhaps {', '.join(nouns)}, {rng.choice(FAR_PLACE[scene.place])}; {scene.place}."


def turns_of(name: str, picture: Picture, item: Any, rng: random.Random, prompts: dict[str, str]) -> list[Turn]:
    """Return one picture's turns for training; the first is its transcript.

    Args:
        name: source set or 'describe'.
        picture: the picture.
        item: the picture's questions (source sets).
        rng: seeded generator.
        prompts: dataset id -> prompt template.
    """
    listed = Turn(TRANSCRIBE, transcript(picture))
    if name == "describe":
        return [listed, *(Turn(request, _describe(rng, picture)) for request in rng.sample(INSTRUCTIONS, 4))]
    if name == "ocrvqa":
        return [listed, *_question_turns(prompts[name], item)]
    assert isinstance(picture, Scene)
    if name == "textvqa":
        return [listed, *_sign_turns(rng, picture, prompts)]
    if name == "gqa":
        questions = _by_kind(rng, [q for _ in range(3) for q in upstream.gqa_questions(rng, picture)])
        turns = [*_question_turns(prompts[name], questions), _lettered_scene(rng, picture)]
    else:
        turns = _question_turns(prompts[name], _knowledge(rng, picture))
        icons = {ICON[thing.icon].category: ICON[thing.icon] for thing in picture.things}
        for category in rng.sample(sorted(icons), min(2, len(icons))):
            others = [i.fact for i in ICONS if i.category == category and i is not icons[category]]
            turns.append(_lettered(rng, rng.choice(KNOWLEDGE[category]), icons[category].fact, others))
    return [listed, *turns]


def _describe(rng: random.Random, picture: Picture) -> str:
    assert not isinstance(picture, Cover)
    return describe_diagram(rng, picture) if isinstance(picture, Diagram) else describe_scene(rng, picture)


def _question_turns(prompt: str, questions: Sequence[Question]) -> list[Turn]:
    return [Turn(prompt.format(question=question.text), question.answer) for question in questions]


def _sign_turns(rng: random.Random, scene: Scene, prompts: dict[str, str]) -> list[Turn]:
    """Return two questions per sign. Half lack the OCR line, so that only the picture answers them."""
    turns = []
    for question in [q for _ in range(2) for q in upstream.sign_questions(rng, scene)]:
        template = prompts["textvqa"] if rng.random() < 0.5 else f"{{question}}\n{BRIEF}"
        turns.append(Turn(template.format(question=question.text, ocr_tokens=", ".join(question.ocr)), question.answer))
    return turns


QUOTA = {"relation": 2, "count": 1, "colour": 2, "object": 3, "place": 1, "verify": 3}
"""Questions of each kind per scene; binding an attribute to an object takes many examples."""


def _by_kind(rng: random.Random, questions: list[Question]) -> list[Question]:
    """Return up to QUOTA different questions of each kind."""
    different = list({q.text: q for q in questions}.values())
    chosen = []
    for kind, most in QUOTA.items():
        same = [q for q in different if q.kind == kind]
        chosen += rng.sample(same, min(most, len(same)))
    return chosen


def _lettered_scene(rng: random.Random, scene: Scene) -> Turn:
    """Return a multiple-choice turn on what a scene shows: a thing, or the category of a thing."""
    present = {ICON[thing.icon] for thing in scene.things}
    shown = {icon.category for icon in present}
    absent = [category for category in CATEGORIES if category not in shown]
    if rng.random() < 0.5 and absent:
        return _lettered(rng, "Which sort of thing is present?", rng.choice(sorted(shown)), absent)
    names = [icon.name for icon in ICONS if icon not in present]
    return _lettered(rng, "Pick what is present.", rng.choice(scene.things).icon, names)


def scene_choices(rng: random.Random, scene: Scene, count: int) -> list[Turn]:
    """Return different multiple-choice turns on a scene: things, categories, facts, colors, places, counts.

    Args:
        rng: seeded generator.
        scene: what the picture shows.
        count: number of turns; fewer if the scene does not answer as many.
    """
    pool = [_lettered_scene(rng, scene)]
    for thing in scene.things:
        icon, spot = ICON[thing.icon], _spot(thing.cell)
        alone = sum(other.icon == thing.icon for other in scene.things) == 1
        other_spots = [_spot((r, c)) for r in range(3) for c in range(3)]
        other_spots = [s for s in other_spots if s not in [_spot(t.cell) for t in scene.things if t.icon == thing.icon]]
        if alone:
            colours = [colour for colour in COLOURS if colour != thing.colour]
            pool.append(_lettered(rng, f"What color is the {thing.icon}?", thing.colour, colours))
            pool.append(_lettered(rng, f"Where is the {thing.icon}?", spot, other_spots))
        names = [other.name for other in ICONS if other is not icon]
        pool.append(_lettered(rng, f"What is at the {spot}?", thing.icon, names))
        number = NUMBERS[sum(other.icon == thing.icon for other in scene.things)]
        numbers = [word for word in NUMBERS[1:6] if word != number]
        pool.append(_lettered(rng, f"How many {icon.plural} are there?", number, numbers))
        same = {ICON[t.icon].fact for t in scene.things}
        facts = [other.fact for other in ICONS if other.category == icon.category and other.fact not in same]
        if sum(ICON[t.icon].category == icon.category for t in scene.things) == 1:
            pool += [_lettered(rng, rng.choice(KNOWLEDGE[icon.category]), icon.fact, facts)] * 2
    for sign in scene.signs:
        words = [word.lower() for word in SIGN_WORDS if word not in [other.word for other in scene.signs]]
        pool.append(_lettered(rng, f"What does the {sign.colour} sign say?", sign.word.lower(), words))
    different = list({turn.prompt: turn for turn in pool}.values())
    return rng.sample(different, min(count, len(different)))


TRANSCRIPTS = 0.2
"""Share of the instruction stage's pictures with transcript and look-ups, which are long and already learned."""


def conversations(seed: int, stage: Stage, prompts: dict[str, str]) -> Iterator[Conversation]:
    """Yield a stage's endless stream of conversations, a pure function of the arguments.

    Args:
        seed: of the choices; each source yields its train pictures in their own order.
        stage: its name is part of the seed and says what is yielded.
        prompts: dataset id -> prompt template.
    """
    rng = random.Random(f"conversations/{stage.name}/{seed}")
    streams = {name: candidates(name, "train") for name in stage.mixture if name != "text"}
    names, weights = list(stage.mixture), list(stage.mixture.values())
    kind = stage.name.removeprefix("more_")
    while True:
        name = rng.choices(names, weights)[0]
        if name == "text":
            chosen = [knowledge_choice(rng) for _ in range(5)]
            if kind == "letters":
                chosen = [letter_look_ups(rng) for _ in range(3)] + chosen[:2]
            elif kind == "choices":
                chosen = [letter_keys(rng) for _ in range(4)] + chosen[:3]
            elif kind == "pointing":
                chosen = [letter_look_ups(rng), *(letter_keys(rng) for _ in range(2)), *chosen[:4]]
            else:
                chosen[0] = letter_keys(rng)
            yield Conversation(None, tuple(chosen), rng.getrandbits(32))
            continue
        picture, item, _ = next(streams[name])
        assert picture is not None  # only targets have items without one
        listed, *turns = turns_of(name, picture, item, rng, prompts)
        if kind in ("instruction", "final") and name == "describe" and isinstance(picture, Scene):
            turns[2:] = [Turn(OTHER_WORDS, other_words(rng, picture)) for _ in range(2)]
        if stage.transcripts:
            turns = [listed, *rng.sample(turns, 2)] if kind == "authors" else [listed]
        elif kind == "matching":
            turns = _look_up_turns(rng, picture, 3) or [listed]
        elif kind == "cells":
            turns = [*(_look_up_turns(rng, picture, 3, PLACE_KEYS) or [listed]), *rng.sample(turns, 2)]
        elif kind == "quiz" and not isinstance(picture, Diagram):
            turns = [Turn(QUIZ, quiz(rng, name, picture, item)) for _ in range(3)]
        elif kind == "quiz":
            turns = [listed]
        elif kind == "letters":
            choices = [turn for turn in turns if turn.answer in LETTERS or turn.prompt in INSTRUCTIONS]
            turns = choices + ([] if name == "describe" else [Turn(QUIZ, quiz(rng, name, picture, item))])
        elif kind == "choices":
            choices = [turn for turn in turns if turn.answer in LETTERS or turn.prompt in INSTRUCTIONS]
            turns = [letter_things(rng, picture) for _ in range(3)] if isinstance(picture, Scene) else []
            turns += choices
            turns += [] if isinstance(picture, Diagram) else [Turn(QUIZ, quiz(rng, name, picture, item, 4))]
        elif kind == "pointing":
            turns = rng.sample(turns, min(2, len(turns)))
            if isinstance(picture, Scene):
                turns += [letter_things(rng, picture) for _ in range(2)] + scene_choices(rng, picture, 4)
            turns += [] if isinstance(picture, Diagram) else [Turn(QUIZ, quiz(rng, name, picture, item, 4))]
        elif rng.random() < TRANSCRIPTS:
            turns = [listed, *_look_up_turns(rng, picture, 1), *rng.sample(turns, len(turns) // 2)]
        if kind == "final" and isinstance(picture, Scene):
            turns += scene_choices(rng, picture, 2)
        yield Conversation(picture, tuple(turns), rng.getrandbits(32))
