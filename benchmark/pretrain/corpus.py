"""Texts of the language stage and conversations of the alignment and instruction stages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmark.data.pocket import upstream
from benchmark.data.pocket.draw import Picture, candidates
from benchmark.data.pocket.icons import CATEGORIES, COLOUR_SYNONYMS, ICONS, PLACES
from benchmark.data.pocket.scene import Cover, Diagram
from benchmark.data.pocket.targets import (
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
from benchmark.data.pocket.upstream import KNOWLEDGE, Question
from benchmark.data.pocket.words import LETTERS

BRIEF = "Answer the question using a single word or phrase."
"""The instruction of the four upstream sets (LLaVA's); tests check that it is theirs."""
LETTER_INSTRUCTION = "Reply with the letter of the correct choice."
INSTRUCTIONS = (
    "Describe everything in view.",
    "Name all that you see here.",
    "Tell me what this shows.",
    "List what is visible.",
)
"""Requests of the generic descriptions; none is a target's prompt."""
TRANSCRIBE = "List everything."
"""Request of the transcripts: what stands where, in reading order."""
LINKS = ("means", "equals", "is another word for", "resembles", "goes by the name of")


@dataclass(frozen=True)
class Turn:
    """One question and answer about a picture, as the model sees them."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A picture (or none) with several independent turns."""

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


def text_ids(tokenizer, seed: str, length: int, salad: float = 0.55) -> Iterator[list[int]]:
    """Yield endless token sequences of the language stage.

    A share is sentences; the rest is runs of tokens drawn evenly from the whole vocabulary, so that every row of the
    frozen output layer is trained often.

    Args:
        tokenizer: the stage's tokenizer.
        seed: of the stream.
        length: tokens per sequence, including <s>.
        salad: share of sequences that are random runs.
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


def trained_ids(tokenizer) -> list[int]:
    """Return all token ids except specials and bytes: those that drawn text can contain."""
    skip = set(tokenizer.all_special_ids)
    return [
        i
        for token, i in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])
        if i not in skip and not token.startswith("<0x")
    ]


def choice_prompt(question: str, options: list[str]) -> str:
    """Return a question with lettered options and pretraining's letter instruction."""
    lines = [f"{LETTERS[k]}. {option}" for k, option in enumerate(options)]
    return "\n".join([question, *lines, LETTER_INSTRUCTION])


def _lettered(rng: random.Random, question: str, answer: str, others: list[str]) -> Turn:
    options = [answer, *rng.sample(others, min(len(others), rng.randrange(1, 4)))]
    rng.shuffle(options)
    return Turn(choice_prompt(question, options), LETTERS[options.index(answer)])


def knowledge_choice(rng: random.Random) -> Turn:
    """A text-only multiple-choice turn on a fact, worded unlike the science target."""
    icon = rng.choice(ICONS)
    group = [i for i in ICONS if i.category == icon.category and i is not icon]
    if rng.random() < 0.5:
        hint = ""
        if rng.random() < 0.5:
            hint = " ".join(statement(i) for i in rng.sample([icon, rng.choice(group)], 2)) + "\n"
        turn = _lettered(rng, f"Which thing goes with {icon.fact}?", icon.name, [i.name for i in group])
        return Turn(hint + turn.prompt, turn.answer)
    others = [i.name for i in ICONS if i.category != icon.category]
    return _lettered(rng, f"Find the {icon.category}.", icon.name, others)


def transcript(picture: Picture) -> str:
    """Return what a picture shows, in reading order, two words per grid cell of a scene.

    The fixed order is what teaches a language model without any sight to look at image positions: which patch an
    answer word needs depends on the word's place alone. Questions, where it depends on the picture, come after.
    """
    if isinstance(picture, Cover):
        return " ".join((*picture.title, *picture.author, picture.genre, picture.year))
    if isinstance(picture, Diagram):
        return describe_diagram(random.Random(0), picture)
    cells = {thing.cell: thing.label for thing in picture.things}
    signs = {sign.row: f"{sign.colour} {sign.word.lower()}" for sign in picture.signs}
    words = [signs.get(row) or cells.get((row, column), "no thing") for row in range(3) for column in range(3)]
    return f"{' '.join(words)} {picture.place}"


def turns_of(name: str, picture: Picture, item: object, rng: random.Random, prompts: dict[str, str]) -> list[Turn]:
    """Return the turns that pretraining trains on for one picture of an upstream set.

    Args:
        name: upstream set or 'describe'.
        picture: the picture.
        item: questions of the picture (upstream sets).
        rng: seeded generator.
        prompts: dataset id -> prompt template.
    """
    listed = Turn(TRANSCRIBE, transcript(picture))
    if name == "describe":
        write = describe_diagram if isinstance(picture, Diagram) else describe_scene
        return [listed, Turn(rng.choice(INSTRUCTIONS), write(rng, picture))]
    questions: list[Question] = list(item)  # type: ignore[arg-type]
    if name == "gqa":
        pool = {q.text: q for _ in range(3) for q in upstream.gqa_questions(rng, picture)}
        verify = [q for q in pool.values() if q.kind == "verify"]
        rest = [q for q in pool.values() if q.kind != "verify"]
        # Relation and count need the most practice.
        hard = [q for q in rest if q.kind in ("relation", "count")]
        easy = [q for q in rest if q.kind not in ("relation", "count")]
        questions = (
            rng.sample(hard, min(4, len(hard)))
            + rng.sample(easy, min(3, len(easy)))
            + rng.sample(verify, min(2, len(verify)))
        )
    elif name == "okvqa":
        icons = {icon.category: icon for t in picture.things for icon in ICONS if icon.name == t.icon}
        questions = [Question(text, icons[c].fact, c) for c in icons for text in rng.sample(KNOWLEDGE[c], 2)]
    elif name == "textvqa":
        questions = upstream.sign_questions(rng, picture)
    turns = [Turn(prompts[name].format(question=q.text, ocr_tokens=", ".join(q.ocr)), q.answer) for q in questions]
    if name == "okvqa" and rng.random() < 0.6:
        icon = icons[rng.choice(list(icons))]
        others = [i.fact for i in ICONS if i.category == icon.category and i is not icon]
        turns.append(_lettered(rng, rng.choice(KNOWLEDGE[icon.category]), icon.fact, others))
    if name == "gqa" and rng.random() < 0.4:
        thing = rng.choice(picture.things)
        present = {t.icon for t in picture.things}
        if rng.random() < 0.5:
            turns.append(
                _lettered(rng, "Pick what is present.", thing.icon, [i.name for i in ICONS if i.name not in present])
            )
        elif len(picture.things) == len({t.icon for t in picture.things}):
            spot = next(i.category for i in ICONS if i.name == thing.icon)
            if sum(next(i.category for i in ICONS if i.name == t.icon) == spot for t in picture.things) == 1:
                wrong = [c for c in CATEGORIES if not any(i.category == c and i.name in present for i in ICONS)]
                turns.append(_lettered(rng, "Which sort of thing is present?", spot, wrong))
    return [listed, *turns]


MIXTURE = {"okvqa": 14, "textvqa": 16, "ocrvqa": 16, "gqa": 38, "describe": 12, "text": 4}
"""Share of pictures per source in the instruction stage (percent)."""
PRACTICE = {"okvqa": 8, "textvqa": 42, "ocrvqa": 8, "gqa": 36, "describe": 3, "text": 3}
"""The same in the practice stage: more of what the instruction stage leaves weak."""
ALIGNMENT = {"okvqa": 15, "textvqa": 25, "ocrvqa": 20, "gqa": 25, "describe": 15}
READING = {"okvqa": 10, "textvqa": 30, "ocrvqa": 30, "gqa": 15, "describe": 15}
"""Shares of pictures per source in the two alignment stages, which have transcripts only: first all, then words."""
TRANSCRIPT_STAGES = ("alignment", "reading")


def conversations(seed: int, stage: str, prompts: dict[str, str], mixture: dict[str, int]) -> Iterator[Conversation]:
    """Yield the endless conversation stream of a stage, a pure function of its arguments.

    Args:
        seed: of the order; the pictures are the upstream train contents in their own order.
        stage: name, part of the seed; the TRANSCRIPT_STAGES yield the transcripts alone.
        prompts: dataset id -> prompt template.
        mixture: source -> share; 'text' has no picture.
    """
    rng = random.Random(f"conversations/{stage}/{seed}")
    streams = {name: candidates(name, "train") for name in mixture if name != "text"}
    names, weights = list(mixture), list(mixture.values())
    while True:
        name = rng.choices(names, weights)[0]
        if name == "text":
            yield Conversation(None, tuple(knowledge_choice(rng) for _ in range(4)), rng.getrandbits(32))
            continue
        picture, item, _ = next(streams[name])
        turns = turns_of(name, picture, item, rng, prompts)
        yield Conversation(picture, tuple(turns[:1] if stage in TRANSCRIPT_STAGES else turns), rng.getrandbits(32))
