"""VQA accuracy of one answer against its annotators, as in the two evaluators in use."""

from __future__ import annotations

from collections.abc import Sequence

from eval.normalise import leave_one_out, process_digit_article, process_punctuation


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def lavis(prediction: str, references: Sequence[str]) -> float:
    """Score one answer like the LAVIS copy of VQAEval, the rule behind the paper's OKVQA column.

    The prediction is always fully normalised. The references lose their punctuation only if they are not all the
    same, and they never pass the digit and article step, so nothing matches "two", "The dog" or "Paris".

    Args:
        prediction: the model's answer.
        references: the annotators' answers, at least one.

    Returns:
        The accuracy in 0..1.
    """
    answer = process_digit_article(process_punctuation(_one_line(prediction)))
    golds = list(references)
    if len(set(golds)) > 1:
        golds = [process_punctuation(gold) for gold in golds]
    return leave_one_out(golds.count(answer), len(golds))


def official(prediction: str, references: Sequence[str]) -> float:
    """Score one answer like the official VQAEval of the VQA dataset.

    If the references are not all the same, prediction and references are normalised alike. Otherwise they are compared
    as they are, without leading and trailing white space.

    Args:
        prediction: the model's answer.
        references: the annotators' answers, at least one.

    Returns:
        The accuracy in 0..1.
    """
    answer = _one_line(prediction)
    golds = [_one_line(gold) for gold in references]
    if len(set(golds)) > 1:
        answer = process_digit_article(process_punctuation(answer))
        golds = [process_digit_article(process_punctuation(gold)) for gold in golds]
    return leave_one_out(golds.count(answer), len(golds))
