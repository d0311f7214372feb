"""What pretraining asks of a model family: its sizes, and how its images and texts reach its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Size = tuple[int, int]
"""Width and height of a picture in pixels."""
Part = Any
"""A part of a model, with attributes that torch does not type."""


class Features(NamedTuple):
    """What a vision tower makes of pictures.

    Args:
        values: (pictures, patches, width); pictures with fewer patches are padded.
        present: (pictures, patches), False at padding; None if all pictures have equally many patches.
        places: (pictures, patches, 2), row and column of each patch, where the tower itself has no position embedding.
    """

    values: Tensor
    present: Tensor | None = None
    places: Tensor | None = None


class Modules(NamedTuple):
    """The parts of a whole model."""

    tower: Part
    projector: nn.Module
    decoder: Part
    head: nn.Linear


class TokenGrid(NamedTuple):
    """Which part of a picture each image token shows.

    Args:
        rows: of tokens.
        columns: of tokens.
        width: of a token, as a share of the picture's; the last column may reach beyond the picture.
        height: of a token, as a share of the picture's; the last row likewise.
        by_column: tokens are in column-major order.
    """

    rows: int
    columns: int
    width: float
    height: float
    by_column: bool = False

    def cells(self) -> list[tuple[int, int]]:
        """Return row and column of each token's centre on a grid of 3 x 3 cells over the picture, in token order."""
        places = [(row, column) for row in range(self.rows) for column in range(self.columns)]
        if self.by_column:
            places.sort(key=lambda place: place[1])
        middles = (((row + 0.5) * self.height, (column + 0.5) * self.width) for row, column in places)
        return [(min(2, int(3 * down)), min(2, int(3 * across))) for down, across in middles]


class Family(ABC):
    """A family of models with the sizes of its small member.

    Args:
        image_size: side in pixels of what the tower sees of a square picture.
    """

    text: ClassVar[Mapping[str, Any]]
    """Sizes of the language model, by the names of its configuration."""
    vision: ClassVar[Mapping[str, Any]]
    """Sizes of the vision tower."""
    language_folder: ClassVar[str]
    """Folder of the language stage. Families with equal language models share it."""
    dtype: ClassVar[torch.dtype]
    """Of the forward and backward pass."""
    tower_batch: ClassVar[int] = 128
    """Pictures per step of the tower stage."""
    batch: ClassVar[int] = 16
    """Pictures or texts per step of the stages with conversations."""
    projector_rate: ClassVar[float] = 1.0
    """Learning rate of the projector in these stages, as a multiple of the language model's."""
    places: ClassVar[int] = 0
    """Rows and columns that a grid of patches may have, if features come with the places of patches."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    @abstractmethod
    def make_tokenizer(self, prompts: Mapping[str, str]) -> PreTrainedTokenizerBase:
        """Return the tokenizer, trained on every word of the sets and of pretraining; it is deterministic."""

    @abstractmethod
    def make_llm(self, tokenizer: PreTrainedTokenizerBase) -> Part:
        """Return a causal language model with initial weights."""

    @abstractmethod
    def make_tower(self) -> Part:
        """Return a vision tower with initial weights."""

    @abstractmethod
    def make_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return the whole model with initial weights."""

    @abstractmethod
    def modules(self, model: PreTrainedModel) -> Modules:
        """Return the parts of a whole model."""

    @abstractmethod
    def pixels(self, images: Sequence[Image.Image]) -> Any:
        """Return pictures as bytes, which a worker process can send cheaply; `features` takes them."""

    @abstractmethod
    def features(self, tower: Part, pixels: Any, dtype: torch.dtype) -> Features:
        """Return the projector's input.

        Args:
            tower: the vision tower.
            pixels: from `pixels`.
            dtype: of the tower's weights.
        """

    @abstractmethod
    def project(self, projector: nn.Module, features: Features) -> Tensor:
        """Return the image tokens of all pictures, one picture after another, (..., width of the language model)."""

    @abstractmethod
    def image_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the id at image positions."""

    @abstractmethod
    def encode(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, size: Size | None
    ) -> tuple[list[int], list[int]]:
        """Return (input_ids, labels) of one turn, as in fine-tuning, about a picture of a size or about none."""

    @abstractmethod
    def positions(self, ids: Sequence[int], image_token_id: int, size: Size | None) -> list[Any]:
        """Return the position of each token of a turn: a number, or one number for each axis."""

    @abstractmethod
    def grid(self, size: Size) -> TokenGrid:
        """Return which part of a picture of a size each of its tokens shows."""

    @abstractmethod
    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        """Write a checkpoint folder that benchmark.models.load can read."""
