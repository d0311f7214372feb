"""ScienceQA accuracy: extract the chosen option from the answer, as LLaVA's script does."""

from __future__ import annotations

import re

OPTIONS = ("A", "B", "C", "D", "E")

# The final dot matches any character, as in the script, so a text that ends with the letter does not match.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def parse_option(text: str) -> str | None:
    """Return the option letter that an answer names.

    The rules, in this order: the text is one of A to E; it begins like "B. "; it contains "The answer is B." once.

    Args:
        text: the model's answer.

    Returns:
        The letter, or None if no rule applies.
    """
    if text in OPTIONS:
        return text
    if len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    letters = _SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 else None


def score(prediction: str, reference: str, n_options: int) -> float:
    """Score one answer.

    Args:
        prediction: the model's answer.
        reference: the right letter.
        n_options: how many options the question has; a letter beyond them is wrong.

    Returns:
        1 if the parsed option is the right one, else 0.
    """
    letter = parse_option(prediction)
    return float(letter is not None and letter in OPTIONS[:n_options] and letter == reference)
