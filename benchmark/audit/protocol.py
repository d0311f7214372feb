"""`audit protocol`: print one evaluation prompt and one training sample of each dataset, byte for byte."""

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
STOP = "stops at </s> (vicuna_v1's separator){} or after {} new tokens; greedy; surrounding white space is removed"


def main(
    specs: Sequence[DatasetSpec], root: Path, model: ModelSpec | None, console: Console | None = None,
    usual: Mapping[str, Any] | None = None,
) -> int:
    """Print the protocol of each dataset with a rendered training sample and evaluation prompt.

    Args:
        specs: the profile's datasets.
        root: data folder.
        model: its tokenizer determines the supervised tokens; without a model or its checkpoint only text is shown.
        console: where to print.
        usual: dataset -> its part of the profile's configuration.

    Returns:
        Exit code 0.

    Raises:
        UserError: no dataset has data.
    """
    console = console or Console(highlight=False)
    tokenizer, form = _tokenizer(model)
    plain_text = not console.is_terminal
    legend = form + (" Without colour, « and » enclose them." if plain_text else "")
    console.print(legend, markup=False, soft_wrap=True)
    shown = 0
    for spec in specs:
        console.rule(f"{spec.name} ({spec.id})", align="left")
        for line in describe(spec, (usual or {}).get(spec.id)):
            console.print(line, markup=False, soft_wrap=True)
        for split, label in (("train", "training sample"), ("test", "evaluation prompt")):
            if split == "train" and spec.role != "target":
                console.print("training sample: none; the set is only evaluated")
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
            console.print(text, soft_wrap=True)  # a line break by the terminal would look like one of the prompt
    if not shown:
        raise UserError(f"There are no data in {root}. First run `data prepare profile=paper`, "
                        "or `data draw`.")
    return 0


def describe(spec: DatasetSpec, usual: Mapping[str, Any] | None = None) -> list[str]:
    """Return the protocol, settings and alternatives of a dataset, one per line.

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
        has_image: whether an image precedes the text.
        tokenizer: determines the mask token by token; if None, the mask is the answer and </s>, which is equivalent.
        model: gives the longest sequence.
        marks: put « and » around the supervised part too, for files and pipes.

    Returns:
        The text, with the supervised part highlighted.
    """
    whole, question = render(prompt, target, has_image), render(prompt, None, has_image)
    answer = whole[len(question) :]
    if tokenizer is not None and model is not None:
        image = len(tokenizer)  # any id that is not a token's
        family = models.family_of(model.family)
        ids, labels = family.encode(tokenizer, prompt, target, has_image, image, 1, model.max_length)
        supervised = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE]
        if family.encode is not encode:  # another conversation format: its text is decoded from its tokens
            runs = itertools.groupby(ids[: len(ids) - len(supervised)], image.__eq__)
            question = "".join(IMAGE_TAG if is_image else _text(tokenizer, list(run)) for is_image, run in runs)
        answer = " " + _text(tokenizer, supervised) if supervised else ""
        whole = question + answer
    text = Text(whole[: len(whole) - len(answer)])
    text.append(f"«{answer}»" if marks and answer else answer, style=SUPERVISED)
    if tokenizer is not None and answer:
        text.append(f"   [{len(supervised)} of {len(ids)} tokens supervised; the image counts as one]", style="dim")
    return text


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of one list of ids; `decode` takes several lists too."""
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def _tokenizer(model: ModelSpec | None) -> tuple[PreTrainedTokenizerBase | None, str]:
    """Return the model's tokenizer, or None without a checkpoint, and a line that explains the colour."""
    legend = "Green: the tokens that the loss sees. "
    if model is not None:
        from benchmark.models import places
        from benchmark.models.folder import load_tokenizer

        folder = places.checkpoint(model).path
        for place in (folder, folder / "llm"):
            if any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
                return load_tokenizer(place), legend + f"Tokens of {model.name}."
    return None, legend + "There is no checkpoint here: the mask is the text of the answer and </s>."
