"""From records to the tensors of any processor: encoded conversations, image tensors, and padded batches of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import ProcessorMixin

from benchmark.core.errors import UserError
from benchmark.core.progress import read_image
from benchmark.data.record import Record, check_images, find_image, open_image
from benchmark.models.auto_processor import Conversation
from benchmark.models.prompt import IGNORE

if TYPE_CHECKING:
    from benchmark.models.batch import Item

KEPT_BYTES = 2**30
BLANK = (56, 56)  # width and height of the dummy image, pixels: a square is cut into the fewest tiles
TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")  # one value per token
TYPES = TEXT[2:4]
Encoded = tuple[list[int], list[int]]


class AutoInputs:
    """How a checkpoint's own processor makes inputs of records.

    Args:
        conversation: its chat template, and through that its processor.
        image_token_id: id at image positions.
        max_length: longest training sequence, in tokens.
        transparency: how image files are opened; see `benchmark.data.record.open_image`.

    Raises:
        UserError: the processor makes token types of an unknown kind, or image tensors that depend on the text.
    """

    def __init__(
        self, conversation: Conversation, image_token_id: int, max_length: int, transparency: str
    ) -> None:
        self.conversation = conversation
        self.image_token_id = image_token_id
        self.processor = conversation.processor
        self.max_length = max_length
        self.transparency = transparency
        # Texts depend on an image's size only, so they are made without reading pixels.
        self.sized = copy.copy(self.processor)
        self.sized.image_processor = _BySize(self.processor.image_processor)
        self.end = self.processor.tokenizer.convert_tokens_to_ids(conversation.end)
        self.types = self._token_types()
        self.kept: dict[Any, dict[str, Tensor]] = {}
        self._check_images()

    # -------------------------------------------------------------------------------------------------------------
    # Texts

    def encode(self, record: Record, supervised: bool) -> Encoded:
        """Return (input_ids, labels) of a record, image positions included.

        Labels are the ids of the answer and its end token, and -100 elsewhere.

        Args:
            record: a record; of its image only the size is read.
            supervised: append the record's target and label it; the end of a longer sequence is cut.

        Raises:
            UserError: the target is empty, max_length cuts it off, the prompt alone is too long, the tokenizer merges
                prompt and answer, or the image cannot be read.
        """
        target = record.target if supervised else None
        size = None if record.image is None else _size_of(record)
        return self.encode_text(record.prompt, target, size)

    def encode_text(self, prompt: str, answer: str | None, size: tuple[int, int] | None) -> Encoded:
        """Return (input_ids, labels) of a conversation about an image of a size (width, height), or about none."""
        ids, labels = self._whole(prompt, answer, size)
        asked = labels.count(IGNORE)
        if answer is None and asked > self.max_length:
            raise UserError(
                f"A prompt of {asked} tokens is longer than max_length={self.max_length}: it begins "
                f"{prompt[:60]!r}. Raise model.max_length, shorten the prompt, or set a smaller image size."
            )
        if answer is not None and asked >= self.max_length:
            raise UserError(
                f"max_length={self.max_length} cuts off the whole answer to {prompt[:60]!r} ({asked} prompt "
                "tokens). Raise model.max_length or drop the record."
            )
        return ids[: self.max_length], labels[: self.max_length]

    def _whole(self, prompt: str, answer: str | None, size: tuple[int, int] | None) -> Encoded:
        """Return (input_ids, labels) of any length."""
        image = None if size is None else Image.new("RGB", size)
        question = self._ids(prompt, None, image)
        if answer is None:
            return question, [IGNORE] * len(question)
        if not answer.strip():
            raise UserError(f"The training answer to {prompt[:60]!r} is empty. Remove the record or give it an answer.")
        ids = self._ids(prompt, answer, image)
        if ids[: len(question)] != question or ids[-1] != self.end:
            raise UserError(
                f"The tokenizer merges the answer {answer.strip()[:30]!r} with the text around it, so the answer "
                "cannot be supervised alone. Use a tokenizer whose tokens do not cross the ends of answers."
            )
        return ids, [IGNORE] * len(question) + ids[len(question) :]

    def _ids(self, prompt: str, answer: str | None, image: Image.Image | None) -> list[int]:
        return _call(self.sized, self.conversation, prompt, answer, image)["input_ids"][0].tolist()

    # -------------------------------------------------------------------------------------------------------------
    # Images

    def images(self, record: Record) -> dict[str, Tensor]:
        """Return the tensors that the processor makes of a record's image, by the processor's own names.

        Raises:
            UserError: the image cannot be read.
        """
        return self.tensors(open_image(record, self.transparency))

    def keep(self, records: Sequence[Record]) -> list[dict[str, Tensor]] | None:
        """Return the tensors of each distinct image of some records, in order of appearance, for all epochs.

        Args:
            records: any; those without an image are skipped.

        Returns:
            The tensors; None if they would take more than KEPT_BYTES, together with those kept already.

        Raises:
            UserError: images cannot be read; the message counts them.
        """
        first: dict[Path, Record] = {}
        for record in records:
            if record.image is not None:
                first.setdefault(record.image, record)
        made, size = dict(self.kept), sum(map(_bytes, self.kept.values()))
        for number, record in enumerate(first.values(), 1):
            if (key := _state(record)) not in made:
                try:
                    made[key] = self.images(record)
                except UserError:
                    check_images(records)
                    raise
                size += _bytes(made[key])
            if size > KEPT_BYTES:
                # Read all files once now, so that hours of training do not end at a broken file.
                check_images(records, read_image)
                return None
            read_image(number, len(first))
        self.kept = made
        return [made[_state(record)] for record in first.values()]

    def tensors(self, image: Image.Image, text: str = "Q") -> dict[str, Tensor]:
        """Return the tensors that the processor makes of an image (beside a text, which does not matter)."""
        made = _call(self.processor, self.conversation, text, None, image)
        return {name: value for name, value in made.items() if name not in TEXT}

    def _check_images(self) -> None:
        """Refuse a processor whose image tensors depend on the text, as those of cross-attention do."""
        image = Image.new("RGB", BLANK)
        one, other = self.tensors(image), self.tensors(image, "Q and a longer text?")
        apart = [name for name in one if not isinstance(one[name], Tensor) or not torch.equal(one[name], other[name])]
        if apart:
            raise UserError(
                f"The processor {type(self.processor).__name__} makes {', '.join(apart)} of image and text together. "
                "Such models (cross-attention) are not supported. Use a family of the table in docs/models.md."
            )

    @property
    def blank(self) -> Item:
        """A conversation about a dummy image, without supervised tokens."""
        from benchmark.models.batch import Item

        ids, labels = self._whole("Q", None, BLANK)
        return Item("blank", ids, labels, self.tensors(Image.new("RGB", BLANK)))

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Return how many positions an image of a size (width, height) takes: all that a prompt without it lacks."""
        return len(self._whole("Q", None, size)[0]) - len(self._whole("Q", None, None)[0])

    # -------------------------------------------------------------------------------------------------------------
    # Batches

    def collate(self, items: Sequence[Item], padding_side: str) -> dict[str, Tensor]:
        """Pad items to one length and join their image tensors.

        Every processor lists images one after another along the first dimension of each tensor (rows of patches, tiles
        or pictures), and fills up the others with zeros, which the model's own masks and sizes leave out.

        Args:
            items: at least one.
            padding_side: "right" for training, "left" for generation.

        Returns:
            input_ids, attention_mask, labels and the processor's token types, each (batch, length), int64; the image
            tensors under the processor's names. There are no positions: the model makes its own, which may have
            several axes.
        """
        length = max(len(item.input_ids) for item in items)
        rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for item in items:
            values = {
                "input_ids": item.input_ids, "attention_mask": [1] * len(item.input_ids), "labels": item.labels,
                **{name: types(item.input_ids, item.labels) for name, types in self.types.items()},
            }
            fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORE}
            for name, row in values.items():
                padding = [fill.get(name, 0)] * (length - len(row))
                rows.setdefault(name, []).append(row + padding if padding_side == "right" else padding + row)
        batch = {name: torch.tensor(values) for name, values in rows.items()}
        pictures = [item.image for item in items if item.image is not None]
        for name in pictures[0] if pictures else ():
            batch[name] = join([picture[name] for picture in pictures])
        return batch

    # -------------------------------------------------------------------------------------------------------------
    # Token types

    def _token_types(self) -> dict[str, Callable[[list[int], list[int]], list[int]]]:
        """Return how the token types are made that the processor returns, after a comparison with its own.

        Raises:
            UserError: the processor returns others.
        """
        image, made = Image.new("RGB", BLANK), dict[str, Callable[[list[int], list[int]], list[int]]]()
        for answer in (None, "A"):
            given = _call(self.processor, self.conversation, "Q", answer, image)
            ids, labels = self._whole("Q", answer, BLANK)
            for name in TYPES:
                if name not in given:
                    continue
                kinds = (self._modalities, _suffixes)
                fitting = [kind for kind in kinds if kind(ids, labels) == given[name][0].tolist()]
                if not fitting or made.get(name, fitting[-1]) not in fitting:
                    raise UserError(
                        f"The processor {type(self.processor).__name__} returns {name} of an unknown kind. "
                        "Use a family of the table in docs/models.md."
                    )
                made[name] = fitting[0]
        return made

    def _modalities(self, ids: list[int], labels: list[int]) -> list[int]:
        """Return 1 at image positions, 0 elsewhere."""
        return self.processor.create_mm_token_type_ids([ids])[0]


def _suffixes(ids: list[int], labels: list[int]) -> list[int]:
    """Return 0 for the prefix, whose tokens see each other, and 1 from the first supervised token on."""
    first = next((place for place, label in enumerate(labels) if label != IGNORE), len(labels))
    return [0] * first + [1] * (len(labels) - first)


class _BySize:
    """An image processor that works once for each image size and returns no pixels, only tensors of their shape."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_processor" not in self.__dict__:
            raise AttributeError(name)  # while it is copied or unpickled
        return getattr(self._processor, name)

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        key = (repr(_sizes(images)), repr(sorted(kwargs.items())))
        if key not in self._known:
            made = self._processor(images, **kwargs)
            for name, value in made.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    made[name] = value.new_zeros(()).expand(value.shape)
            self._known[key] = made
        return copy.copy(self._known[key])  # processors take entries out


def _sizes(images: Any) -> Any:
    return [_sizes(image) for image in images] if isinstance(images, list | tuple) else images.size


def _call(
    processor: ProcessorMixin, conversation: Conversation, prompt: str, answer: str | None, image: Image.Image | None
) -> dict[str, Tensor]:
    """Return what a processor makes of one conversation."""
    text = conversation.render(prompt, answer, image is not None)
    options: dict[str, Any] = {"text": [text], "return_tensors": "pt", "padding": False}
    if conversation.template is None:  # the processor joins prompt and answer by itself
        if image is None:
            return _prefix_suffix(processor, text, None if answer is None else conversation.plain(answer))
        if answer is not None:
            options["suffix"] = [conversation.plain(answer)]
    if image is not None:
        options["images"] = [[image]]
    return dict(processor(**options))


def _prefix_suffix(processor: ProcessorMixin, prompt: str, answer: str | None) -> dict[str, Tensor]:
    """Return what PaliGemma's processor makes of a prompt with an image, but without the image, which it insists on."""
    tokenizer = processor.tokenizer
    suffix = {} if answer is None else {"text_pair": [answer + tokenizer.eos_token]}
    return dict(tokenizer(
        [f"{tokenizer.bos_token}{prompt}\n"], return_token_type_ids=True, return_tensors="pt", **suffix
    ))


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors one after another along their first dimension; the others are filled up with zeros."""
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [large - size for large, size in zip(largest, tensor.shape[1:], strict=True)]
        padded.append(F.pad(tensor, [side for more in reversed(missing) for side in (0, more)]))
    return torch.cat(padded)


def _bytes(picture: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in picture.values())


def _state(record: Record) -> tuple[Path, int, int]:
    """Return path, time and size of a record's image file, which change with its content."""
    assert record.image is not None
    path = find_image(record.image) or record.image
    try:
        return path, path.stat().st_mtime_ns, path.stat().st_size
    except OSError:
        return path, 0, 0  # opening it reports it


def _size_of(record: Record) -> tuple[int, int]:
    """Return (width, height) of a record's image from its header."""
    assert record.image is not None
    try:
        with Image.open(find_image(record.image) or Path(record.image)) as image:
            return image.size
    except (OSError, SyntaxError, ValueError):
        return open_image(record).size  # says what is wrong
