"""The vicuna_v1 conversation, its tokenisation around the image, and the label mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
USER = "USER:"
ASSISTANT = "ASSISTANT:"
IMAGE_TAG = "<image>"
IGNORE = -100


def render(prompt: str, target: str | None, has_image: bool) -> str:
    """Return the conversation as one string.

    Args:
        prompt: the user's text without image tag.
        target: the answer, or None for the prompt that generation continues.
        has_image: whether the image tag and a line break precede the user's text.

    Returns:
        The text, ending in "ASSISTANT:" or in the answer and the end-of-sequence token.
    """
    before, after = _chunks(prompt, has_image)
    answer = "" if target is None else f" {target.strip()}</s>"
    return before + (IMAGE_TAG if has_image else "") + after + answer


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    target: str | None,
    has_image: bool,
    image_token_id: int,
    image_seq_length: int,
    max_length: int,
) -> tuple[list[int], list[int]]:
    """Tokenise one conversation; only the answer and its end token are supervised (LLaVA preprocess_v1).

    The texts before and after the image are tokenised separately. The line break after the image is then a token of
    its own, as in LLaVA, whatever prefix rule the tokenizer file has.

    Args:
        tokenizer: with begin and end tokens.
        prompt: the user's text without image tag.
        target: the answer, or None for the prompt that generation continues.
        has_image: whether image positions precede the user's text.
        image_token_id: the id at every image position.
        image_seq_length: number of image positions.
        max_length: longest sequence, in tokens; the end of a longer training sample is cut, image positions included.

    Returns:
        (input_ids, labels), of equal length. Labels are -100 where nothing is supervised, without a target everywhere.

    Raises:
        UserError: the target is empty, max_length cuts it off, or the prompt alone exceeds max_length.
    """
    before, after = _chunks(prompt, has_image)
    head = [tokenizer.bos_token_id]
    if has_image:
        head += _ids(tokenizer, before) + [image_token_id] * image_seq_length
        before = ""
    question = head + _ids(tokenizer, before + after)
    if target is None:
        if len(question) > max_length:
            raise UserError(
                f"A prompt of {len(question)} tokens is longer than max_length={max_length}: it begins "
                f"{prompt[:60]!r}. Raise model.max_length or shorten the prompt."
            )
        return question, [IGNORE] * len(question)
    answer = target.strip()
    if not answer:
        raise UserError(
            f"The training answer to {prompt[:60]!r} is empty. Remove the record or give it an answer."
        )
    ids = head + _ids(tokenizer, f"{before}{after} {answer}") + [tokenizer.eos_token_id]
    if ids[: len(question)] != question:
        raise UserError(
            f"The tokenizer merges the end of the prompt with the answer {answer[:30]!r}, so the answer "
            "cannot be supervised alone. Use a tokenizer whose tokens do not cross spaces."
        )
    if len(question) >= max_length:
        raise UserError(
            f"max_length={max_length} cuts off the whole answer to {prompt[:60]!r} ({len(question)} prompt "
            "tokens). Raise model.max_length or drop the record."
        )
    labels = [IGNORE] * len(question) + ids[len(question) :]
    return ids[:max_length], labels[:max_length]


def _chunks(prompt: str, has_image: bool) -> tuple[str, str]:
    text = prompt.replace(IMAGE_TAG, "").strip()
    newline = "\n" if has_image else ""
    return f"{SYSTEM} {USER} ", f"{newline}{text} {ASSISTANT}"


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # A dataset's text may contain "</s>" literally. It must stay text, not end the sequence.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
