"""Answers that break careless scorers, drawn by a seed: unicode, contractions, digits, articles, marks, line ends.

`reference.json.gz` holds what these functions drew with seed 0 and the scores that the official scripts gave them.
"""

from __future__ import annotations

import random
from typing import Any

WORDS = (
    "dog", "Dogs", "hot dog", "t-shirt", "ping pong", "ping-pong", "New York", "yes", "Yes", "no", "none", "zero",
    "two", "ten", "Eleven", "red", "blue and white", "surfing", "o'clock", "man's hat", "the", "a", "an", "The Dog",
    "A", "I",
)
CONTRACTIONS = (
    "dont", "don't", "its", "it's", "Im", "I'm", "isnt", "youd've", "hadnt've", "somebody'd", "somebodyd", "lets",
    "let's", "shes", "she's", "id've", "Id've", "'ow's'at", "ow's'at", "yall'll", "maam", "ma'am", "oclock", "twas",
    "whats", "wont", "couldn'tve", "wouldntve", "they'dve",
)
NUMBERS = (
    "0", "1", "10", "007", "1,000", "1,000,000", "1.5", "0.5.", ".5", "5.", "$5.50", "50%", "3:30", "1/2", "2nd", "٣",
    "２",
    "½", "1 000", "-7", "1,0 00", "12.30 pm", "1.", "a1,2b",
)
MARKS = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!", ".", ":",
    "'", "’", "“", "…", "...", "--", "&", "#", "*", "~", "^", "|", "%", "$",
)
UNICODE = (
    "é", "e\u0301", "ß", "İ", "ı", "ﬁsh", "naïve", "日本", "😀", "\u200b", "\u00a0", "\ufeff", "Ω", "Å", "ǅ", "ﷺ",
    "\u202eabc",
)
SIMPLE = ("dog", "hot dog", "surfing", "red", "2", "yes", "new york", "t-shirt", "don't", "1,000", "man's hat", "5.5")
SCENE = (
    "man", "woman", "dog", "cat", "bike", "street", "table", "red", "blue", "small", "large", "sits", "stands", "on",
    "under", "near", "a", "the", "two", "three",
)
SPACES = (" ", "  ", "\t", "\n", "\r", "\u2028", "\x0b", "\x0c", "\x85", "\u3000", "")
PLAIN_SPACES = (" ", "  ", "\t", "\n")


def piece(rng: random.Random) -> str:
    """Return a word, number, mark or worse."""
    return rng.choice(rng.choice((WORDS, WORDS, CONTRACTIONS, NUMBERS, MARKS, UNICODE)))


def answer(rng: random.Random) -> str:
    """Return an answer: mostly short, sometimes empty, white, very long, or full of one mark."""
    kind = rng.random()
    if kind < 0.02:
        return ""
    if kind < 0.04:
        return rng.choice(SPACES) * rng.randrange(1, 4)
    if kind < 0.05:
        return rng.choice((". ", ".x", "a. ")) * rng.randrange(30, 70)
    if kind < 0.06:
        return " ".join(piece(rng) for _ in range(rng.randrange(150, 250)))
    parts = [piece(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5)))]
    return "".join(part + rng.choice(SPACES if rng.random() < 0.15 else (" ", " ", "")) for part in parts)


def mutated(rng: random.Random, text: str) -> str:
    """Return a text with what scorers should or should not overlook."""
    return rng.choice((
        text, text, text.upper(), text.lower(), text.title(), f"the {text}", f"{text}.", f"{text}...", f" {text} ",
        f"{text}\n", text.replace("'", ""), text.replace("-", " "), text.replace(",", ""), f"a {text}?",
        f"{text}\u2028",
        text.replace("two", "2"), text.replace("0", "zero"), text.replace("'s", " 's"), f'"{text}"', f"{text}, {text}",
    ))


def vqa(rng: random.Random) -> dict[str, Any]:
    """Return {prediction, references}: ten annotators who agree more or less, a prediction near one of them."""
    simple = rng.random() < 0.4  # as most annotators write
    pool = [rng.choice(SIMPLE) if simple else answer(rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 6)))]
    references = [rng.choice(pool) for _ in range(10)]
    if rng.random() < 0.5:
        references = [mutated(rng, text) if rng.random() < 0.3 else text for text in references]
    prediction = mutated(rng, rng.choice(references)) if rng.random() < 0.8 else answer(rng)
    return {"prediction": prediction, "references": references}


def exact(rng: random.Random) -> dict[str, Any]:
    """Return {prediction, references} with one reference."""
    gold = answer(rng)
    return {"prediction": mutated(rng, gold) if rng.random() < 0.8 else answer(rng), "references": [gold]}


def option(rng: random.Random) -> dict[str, Any]:
    """Return {prediction, gold, options} of a multiple-choice question with two to five options."""
    count = rng.randrange(2, 6)
    gold = rng.randrange(count)
    named = "ABCDE"[gold] if rng.random() < 0.5 else rng.choice("ABCDEFG")
    prediction = rng.choice((
        named, named, f"{named}.", f"{named}. ", f"{named}. dog", f"{named}) dog", named.lower(), f" {named}",
        f"{named}\n",
        f"The answer is {named}.", f"The answer is {named}", f"The answer is {named}. The answer is {named}.",
        f"the answer is {named}.", f"Because of it.\nThe answer is {named}.", f"The answer is {named}!", f"({named})",
        "", answer(rng), f"{named}.dog", f"The answer is {named}\n", f"{named} .", f"The  answer is {named}.",
    ))
    return {"prediction": prediction, "gold": gold, "options": count}


def caption(rng: random.Random, scene: list[str]) -> str:
    """Return a caption of a scene, with marks and odd tokens but without line ends that PTBTokenizer also counts."""
    words = [word for word in scene if rng.random() < 0.8]
    for _ in range(rng.choice((0, 0, 1, 2))):
        odd = rng.choice((
            *CONTRACTIONS, *NUMBERS, *MARKS, "é", "naïve", "日本", "😀", "ß", "U.S.", "e.g.", "can't", "gonna",
        ))
        words.insert(rng.randrange(len(words) + 1), odd)
    if rng.random() < 0.03:
        words = words * 30
    text = "".join(word + rng.choice(PLAIN_SPACES if rng.random() < 0.05 else (" ",)) for word in words)
    return rng.choice((text, text.capitalize(), f"{text.strip()}.", f"{text.strip()} .", text.upper()))


def captions(rng: random.Random, images: int) -> list[dict[str, Any]]:
    """Return {prediction, references} per image, five or more references, some predictions empty."""
    found = []
    for _ in range(images):
        scene = [rng.choice(SCENE) for _ in range(rng.randrange(4, 14))]
        references = [caption(rng, scene) or "a" for _ in range(rng.choice((5, 5, 5, 6)))]
        found.append({"prediction": caption(rng, scene) if rng.random() < 0.97 else "", "references": references})
    return found


def everything(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return all inputs: 4,000 for VQA rules, 2,000 for exact match, 2,000 for options, 400 images with captions."""
    rng = random.Random(seed)
    return {
        "vqa": [vqa(rng) for _ in range(4000)],
        "exact": [exact(rng) for _ in range(2000)],
        "option": [option(rng) for _ in range(2000)],
        "caption": captions(rng, 400),
    }
