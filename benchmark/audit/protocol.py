"""`audit protocol`: what a model is asked and what it is trained on, byte for byte, one sample of each dataset."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from benchmark import data, models
from benchmark.config import protocols
from benchmark.core.errors import UserError, printable
from benchmark.data.layout import Absent
from benchmark.models.prompt import IGNORE, IMAGE_TAG, encode, render
from benchmark.spec import DatasetSpec, ModelSpec, plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPERVISED = "bold white on dark_green"
STOP = "stops at </s> (vicuna_v1's separator){} or after {} new tokens; greedy; outer white space is cut"


def main(
    specs: Sequence[DatasetSpec], root: Path, model: ModelSpec | None, console: Console | None = None,
    usual: Mapping[str, Any] | None = None,
) -> int:
    """Print the protocol of each dataset with a rendered training sample and evaluation prompt.

    Args:
        specs: the profile's datasets.
        root: data folder.
        model: its tokenizer decides which tokens are supervised; None or without checkpoint: the text alone.
        console: where to print.
        usual: dataset -> its part of the profile's configuration.

    Returns:
        Exit code 0.

    Raises:
        UserError: there are data of none of them.
    """
    console = console or Console(highlight=False)
    tokenizer, form = _tokenizer(model)
    plain_text = not console.is_terminal
    console.print(f"{form}{' Without colours: between « and ».' if plain_text else ''}", markup=False, soft_wrap=True)
    shown = 0
    for spec in specs:
        console.rule(f"{spec.name} ({spec.id})", align="left")
        for line in describe(spec, (usual or {}).get(spec.id)):
            console.print(line, markup=False, soft_wrap=True)
        for split, label in (("train", "training sample"), ("test", "evaluation prompt")):
            if split == "train" and spec.role != "target":
                console.print("training sample: none, the set is only evaluated")
                continue
            try:
                record = data.subset(data.load(spec, root, split), 1)[0]
            except Absent as absent:
                console.print(f"{label}: no data ({absent})", markup=False)
                continue
            shown += 1
            console.print(f"{label}, item {printable(record.item_id)}:", markup=False)
            target = printable(record.target or "") if split == "train" else None
            text = sample(printable(record.prompt), target, record.image is not None, tokenizer, model, plain_text)
            console.print(text, soft_wrap=True)  # a break of the terminal's would not be the prompt's
    if not shown:
        raise UserError(f"There are no data in {root}. Get them first: `data prepare profile=paper`, "
                        "or `data draw`.")
    return 0


def describe(spec: DatasetSpec, usual: Mapping[str, Any] | None = None) -> list[str]:
    """Return protocol name, settings and the alternatives of a dataset, a line each.

    Args:
        spec: the dataset.
        usual: its part of the profile's configuration.
    """
    known = protocols.known(spec.id)
    chosen = protocols.name_of(plain(spec), spec.id, usual)
    lines = [
        f"protocol {chosen}: {known[chosen].about}" if chosen in known else f"protocol {chosen}",
        f"prompt {spec.prompt!r}, metric {spec.metric}",
        STOP.format("".join(f", at {word!r}" for word in spec.stop), spec.max_new_tokens),
        f"splits {spec.splits}, counts {spec.counts}, options {spec.options}",
    ]
    others = [name for name in known if name != chosen]
    return [*lines, *([f"others: protocol.{spec.id}={'|'.join(others)}"] if others else [])]


def sample(
    prompt: str, target: str | None, has_image: bool, tokenizer: PreTrainedTokenizerBase | None,
    model: ModelSpec | None, marks: bool = False,
) -> Text:
    """Return a conversation with the supervised part in colour.

    Args:
        prompt: the user's text.
        target: the answer, or None for an evaluation prompt.
        has_image: whether the image stands before the text.
        tokenizer: decides the mask token by token; None: the answer and </s>, which is what it amounts to.
        model: for its longest sequence.
        marks: put « and » around the supervised part too, for files and pipes.

    Returns:
        The text; what the loss sees is highlighted.
    """
    whole, asked = render(prompt, target, has_image), render(prompt, None, has_image)
    answer = whole[len(asked) :]
    if tokenizer is not None and model is not None:
        image = len(tokenizer)  # any id that no token has
        family = models.family_of(model.family)
        ids, labels = family.encode(tokenizer, prompt, target, has_image, image, 1, model.max_length)
        supervised = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE]
        if family.encode is not encode:  # another conversation: its text is what its tokens say
            runs = itertools.groupby(ids[: len(ids) - len(supervised)], image.__eq__)
            asked = "".join(IMAGE_TAG if is_image else _text(tokenizer, list(run)) for is_image, run in runs)
        answer = " " + _text(tokenizer, supervised) if supervised else ""
        whole = asked + answer
    text = Text(whole[: len(whole) - len(answer)])
    text.append(f"«{answer}»" if marks and answer else answer, style=SUPERVISED)
    if tokenizer is not None and answer:
        text.append(f"   [{len(supervised)} of {len(ids)} tokens supervised, the image counted once]", style="dim")
    return text


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of one list of ids; `decode` takes several lists too."""
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def _tokenizer(model: ModelSpec | None) -> tuple[PreTrainedTokenizerBase | None, str]:
    """Return the model's tokenizer if its checkpoint is here, and a line on what the colour means."""
    legend = "On green: what the loss sees. "
    if model is not None:
        from benchmark.models import places
        from benchmark.models.folder import load_tokenizer

        folder = places.checkpoint(model).path
        for place in (folder, folder / "llm"):
            if any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
                return load_tokenizer(place), legend + f"Tokens of {model.name}."
    return None, legend + "No checkpoint here: the mask by text, the answer and </s>."
