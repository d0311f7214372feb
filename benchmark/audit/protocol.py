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
from benchmark.data.record import open_image
from benchmark.models.prompt import IGNORE, IMAGE_TAG, encode, render
from benchmark.spec import DatasetSpec, ModelSpec, plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from benchmark.models.auto_inputs import AutoInputs

LEGEND = "Green: the tokens that the loss sees. "
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
    inputs = _inputs(model)
    tokenizer, form = (None, LEGEND + "Tokens of the checkpoint's own template.") if inputs else _tokenizer(model)
    plain_text = not console.is_terminal
    legend = form + (" Without colour, « and » enclose them." if plain_text else "")
    console.print(legend, markup=False, soft_wrap=True)
    shown = 0
    for spec in specs:
        console.rule(f"{spec.name} ({spec.id})", align="left")
        for line in describe(spec, (usual or {}).get(spec.id), inputs.conversation.end if inputs else None):
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
            if inputs:
                size = open_image(record).size if record.image is not None else None
                text = conversation(inputs, printable(record.prompt), target, size, plain_text)
            else:
                text = sample(printable(record.prompt), target, record.image is not None, tokenizer, model, plain_text)
            console.print(text, soft_wrap=True)  # a line break by the terminal would look like one of the prompt
    if not shown:
        raise UserError(f"There are no data in {root}. First run `data prepare profile=paper`, "
                        "or `data draw`.")
    return 0


def describe(spec: DatasetSpec, usual: Mapping[str, Any] | None = None, end: str | None = None) -> list[str]:
    """Return the protocol, settings and alternatives of a dataset, one per line.

    Args:
        spec: the dataset.
        usual: its part of the profile's configuration.
        end: the token that ends an answer, if it is not vicuna_v1's.
    """
    stop = STOP if end is None else STOP.replace("</s> (vicuna_v1's separator)", f"{end} (of the chat template)")
    known = protocols.known(spec.id)
    chosen = protocols.name_of(plain(spec), spec.id, usual)
    lines = [
        f"protocol {chosen}: {known[chosen].about}" if chosen in known else f"protocol {chosen}",
        f"prompt {spec.prompt!r}, metric {spec.metric}",
        stop.format("".join(f", at {word!r}" for word in spec.stop), spec.max_new_tokens),
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


def conversation(
    inputs: AutoInputs, prompt: str, answer: str | None, size: tuple[int, int] | None, marks: bool = False
) -> Text:
    """Return a conversation of family auto, decoded from its tokens, with the supervised part in colour.

    Args:
        inputs: the checkpoint's.
        prompt: the user's text.
        answer: the answer, or None for an evaluation prompt.
        size: width and height of the image, pixels; None without image.
        marks: put « and » around the supervised part too, for files and pipes.
    """
    ids, labels = inputs.encode_text(prompt, answer, size)
    tokenizer, supervised = inputs.processor.tokenizer, [label for label in labels if label != IGNORE]
    text, images = Text(), 0
    for is_image, run in itertools.groupby(ids[: len(ids) - len(supervised)], inputs.image_token_id.__eq__):
        tokens = list(run)
        images += len(tokens) if is_image else 0
        text.append(f"[image x {len(tokens)}]" if is_image else _text(tokenizer, tokens))
    if supervised:
        ending = _text(tokenizer, supervised)
        text.append(f"«{ending}»" if marks else ending, style=SUPERVISED)
        text.append(f"   [{len(supervised)} of {len(ids)} tokens supervised, {images} are of the image]", style="dim")
    return text


def _inputs(model: ModelSpec | None) -> AutoInputs | None:
    """Return how a checkpoint of family auto makes inputs; None for other families, or without a checkpoint."""
    from benchmark.models import places

    if model is None or model.family != "auto" or not places.checkpoint(model).path.is_dir():
        return None
    from benchmark.models.auto import load_inputs

    return load_inputs(places.checkpoint(model).path, model)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of one list of ids; `decode` takes several lists too."""
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def _tokenizer(model: ModelSpec | None) -> tuple[PreTrainedTokenizerBase | None, str]:
    """Return the model's tokenizer, or None without a checkpoint, and a line that explains the colour."""
    if model is not None:
        from benchmark.models import places
        from benchmark.models.folder import load_tokenizer

        folder = places.checkpoint(model).path
        for place in (folder, folder / "llm"):
            if any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
                return load_tokenizer(place), LEGEND + f"Tokens of {model.name}."
    return None, LEGEND + "There is no checkpoint here: the mask is the text of the answer and </s>."
