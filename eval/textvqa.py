"""TextVQA accuracy: EvalAI's answer processor for prediction and references, then the leave-one-out score."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.core.errors import UserError
from eval.normalise import leave_one_out, process_digit_article, process_punctuation

ANNOTATORS = 10


def process(text: str) -> str:
    """Normalise an answer as EvalAI does: lower case, no "," or "?", "'s" split off, then as in VQA accuracy.

    Because commas are removed first, a number with a comma no longer changes how other marks are treated.

    Args:
        text: an answer.

    Returns:
        The normalised answer; "The man's hat, size 1,000?" becomes "man 's hat size 1000".
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return process_digit_article(process_punctuation(text))


def score(prediction: str, references: Sequence[str]) -> float:
    """Score one answer against ten annotators.

    Args:
        prediction: the model's answer.
        references: exactly ten answers.

    Returns:
        The accuracy, one of 0, 0.3, 0.6, 0.9 and 1.

    Raises:
        UserError: there are not ten references.
    """
    if len(references) != ANNOTATORS:
        raise UserError(
            f"TextVQA accuracy needs {ANNOTATORS} annotator answers per question, got {len(references)}. "
            "Use the annotation file TextVQA_0.5.1_*.json as distributed."
        )
    golds = [process(gold) for gold in references]
    return leave_one_out(golds.count(process(prediction)), ANNOTATORS)
