"""Answer normalisation shared by the VQA accuracy rules: VQAEval, its LAVIS copy, TextVQA's EvalAI processor.

The three evaluators use the same tables and the same two steps. Their quirks change scores, so they are kept:
the period rule stops after 32 replacements (a regex flag passed as a count), its look-behind never applies,
and the contractions table maps "somebody'd" to "somebodyd".
"""

from __future__ import annotations

import re

_PUNCTUATION = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!",
)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_NOT_BEFORE_DIGIT = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32

_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_ARTICLES = frozenset({"a", "an", "the"})

# Written without the apostrophe, these words get it back.
_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's I'm I've isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've
    o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
    who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""

# Words with two or three apostrophes, each with the misspellings that the evaluators correct.
_MORE_APOSTROPHES = {
    "couldn't've": "couldn'tve couldnt've",
    "hadn't've": "hadnt've hadn'tve",
    "he'd've": "hed've he'dve",
    "I'd've": "Id've I'dve",
    "it'd've": "itd've it'dve",
    "mightn't've": "mightnt've mightn'tve",
    "'ow's'at": "ow's'at 'ows'at 'ow'sat",
    "she'd've": "shed've she'dve",
    "shouldn't've": "shouldnt've shouldn'tve",
    "somebody'd've": "somebodyd've somebody'dve",
    "someone'd've": "someoned've someone'dve",
    "something'd've": "somethingd've something'dve",
    "there'd've": "thered've there'dve",
    "they'd've": "theyd've they'dve",
    "we'd've": "wed've we'dve",
    "who'd've": "whod've who'dve",
    "wouldn't've": "wouldnt've wouldn'tve",
    "y'all'll": "yall'll y'allll",
    "y'all'd've": "yall'd've y'alld've y'all'dve",
    "you'd've": "youd've you'dve",
}

CONTRACTIONS: dict[str, str] = (
    {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    | {variant: word for word, variants in _MORE_APOSTROPHES.items() for variant in variants.split()}
    | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}
)


def process_punctuation(text: str) -> str:
    """Remove punctuation marks or turn them into spaces, then remove periods that precede no digit.

    All occurrences of a mark are removed if one of them touches a space, or if the text contains a number with a
    comma ("1,000"); otherwise they become spaces. Colons and apostrophes are kept.

    Args:
        text: an answer.

    Returns:
        The answer without those marks; case and other spacing are unchanged.
    """
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches_space or comma_in_number else " ")
    return _PERIOD_NOT_BEFORE_DIGIT.sub("", result, count=_MAX_PERIODS)


def process_digit_article(text: str) -> str:
    """Lower-case, write number words as digits, drop articles, restore apostrophes, use single spaces.

    Args:
        text: an answer, usually after `process_punctuation`.

    Returns:
        The normalised answer; "the two dogs" becomes "2 dogs".
    """
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def leave_one_out(matches: int, annotators: int) -> float:
    """Return the mean over annotators of min(1, agreeing others / 3).

    Each annotator in turn is left out and the answer is compared with the others. With ten annotators, 0, 1, 2, 3 and 4
    or more matches score 0, 0.3, 0.6, 0.9 and 1.

    Args:
        matches: how many annotators gave the predicted answer.
        annotators: how many annotators there are, at least 1.

    Returns:
        The score in 0..1.
    """
    agreeing = matches * min(1.0, (matches - 1) / 3) if matches else 0.0
    others = (annotators - matches) * min(1.0, matches / 3)
    return (agreeing + others) / annotators
