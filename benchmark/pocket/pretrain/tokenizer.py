"""A small BPE tokenizer like Llama's: '▁' marks word starts, bytes are the fallback, <unk> pads."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmark.pocket.pretrain.corpus import BRIEF, LETTER_INSTRUCTION, LINKS
from benchmark.pocket.world import icons, targets, words
from benchmark.pocket.world.content import candidates
from benchmark.pocket.world.scene import Scene
from benchmark.pocket.world.splits import TARGETS, UPSTREAM

SPECIAL = ("<unk>", "<s>", "</s>")
"""Tokens 0, 1 and 2: unknown and padding, begin, end."""
IMAGE = ("<image>",)


def corpus(prompts: Mapping[str, str], frame: Sequence[str], items: int = 1500) -> list[str]:
    """Return texts that contain every word of the eight sets and of pretraining.

    Args:
        prompts: dataset id -> prompt template, of which the literal words are used.
        frame: the texts around prompts and answers.
        items: number of items sampled per dataset; the fixed word lists are added whole.
    """
    texts = [*frame, BRIEF, LETTER_INSTRUCTION, *words.INSTRUCTIONS, *LINKS]
    for template in prompts.values():
        texts.append(" ".join(part for part in _literals(template)))
    texts += ["Context:", *(f"{letter}." for letter in words.LETTERS)]
    for group in (
        words.SIGN_WORDS, words.TITLE_FIRST, words.TITLE_SECOND, words.FIRST_NAMES, words.LAST_NAMES, words.YEARS,
        words.NUMBERS, icons.SHAPES, icons.CATEGORIES, tuple(icons.COLOURS), tuple(icons.PLACES),
        tuple(icons.COLOUR_SYNONYMS.values()), targets.NEAR_SIZE, targets.FAR_SIZE,
        tuple(targets.FAR_HYPERNYM.values()),
    ):
        texts += [w for word in group for w in (word, word.lower())]
    for icon in icons.ICONS:
        texts += [icon.name, icon.plural, icon.category, icon.synonym, icon.fact, targets.statement(icon)]
    rng = random.Random("tokenizer")
    for name in (*UPSTREAM, *TARGETS):
        stream = candidates(name, "train")
        for _ in range(items):
            picture, item, _ = next(stream)
            if name in UPSTREAM:
                texts += [t for q in item for t in (q.text, q.answer)]
            elif name in ("iconqa", "scienceqa"):
                texts += [item.question, item.hint, *item.options]
            else:
                assert isinstance(picture, Scene)
                texts += targets.captions(rng, picture, name)
    texts += [targets.describe_diagram(rng, targets.random_diagram(rng)) for _ in range(200)]
    texts += [targets.describe_scene(rng, targets.caption_scene(rng)) for _ in range(200)]
    return sorted(set(texts))


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a single token."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def _literals(template: str) -> list[str]:
    import string

    return [literal for literal, *_ in string.Formatter().parse(template) if literal]


def train_tokenizer(
    texts: Sequence[str], special: Sequence[str] = SPECIAL, more: Sequence[str] = IMAGE
) -> PreTrainedTokenizerFast:
    """Train a tokenizer in which every word of the texts is one token.

    Args:
        texts: see `corpus`.
        special: tokens 0 (unknown and padding), 1 (begin) and 2 (end).
        more: special tokens that come last.

    Returns:
        A tokenizer with the special tokens, 256 byte tokens, the words, and `more`.
    """
    unknown, begin, end = special
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[.,:;?!']"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Each distinct word appears once, so that the order of merges does not depend on how often it was sampled.
    pieces = {piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, min_frequency=1, special_tokens=[*special, *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator(
        [piece.replace("▁", " ").strip(" ") if piece != "▁" else " " for piece in sorted(pieces)], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, unk_token=unknown, pad_token=unknown,
        padding_side="right", model_max_length=512, clean_up_tokenization_spaces=False,
    )
    added = [AddedToken(token, special=True, normalized=False) for token in more]
    fast.add_special_tokens({"additional_special_tokens": added})
    return fast
