"""The models: a table from family to module. A new architecture is one module with three functions (see Family)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmark.core.errors import UserError, did_you_mean
from benchmark.models import prompt
from benchmark.models import scope as scopes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from benchmark.data.record import Record
    from benchmark.models.batch import Item
    from benchmark.models.scope import Projector
    from benchmark.models.vision import ImageProcessor
    from benchmark.spec import ModelSpec, TrainSpec

FAMILIES = {
    "auto": "benchmark.models.auto",
    "llava": "benchmark.models.llava",
    "vila": "benchmark.models.vila",
}


class Family(Protocol):
    """What a module of FAMILIES provides. Training, methods, generation and keys need nothing else of an architecture.

    Only families whose checkpoints we write have a fourth function, `save(model, tokenizer, preprocessor, path)`. A
    module with COMPLETE = True needs `load` alone, which then returns `inputs` and the prefixes too.
    """

    @staticmethod
    def load(path: Path, spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
        """Read a checkpoint strictly and return the fields of LoadedModel that depend on the architecture."""

    @staticmethod
    def encode(
        tokenizer: PreTrainedTokenizerBase, prompt: str, target: str | None, has_image: bool, image_token_id: int,
        image_seq_length: int, max_length: int,
    ) -> tuple[list[int], list[int]]:
        """Return (input_ids, labels) of a conversation and its image positions, like benchmark.models.prompt.encode."""

    @staticmethod
    def blocks(model: PreTrainedModel) -> tuple[str, list[str]]:
        """Return the parameter-name prefix of the projector, and of each language-model block in order."""


class Inputs(Protocol):
    """What a family provides whose images differ in number and kind of tensors. Others use `benchmark.models.batch`."""

    def encode(self, record: Record, supervised: bool) -> tuple[list[int], list[int]]:
        """Return (input_ids, labels) of a record, image positions included."""

    def images(self, record: Record) -> dict[str, Tensor]:
        """Return the tensors of a record's image."""

    def keep(self, records: Sequence[Record]) -> list[dict[str, Tensor]] | None:
        """Return the tensors of each distinct image of some records, in order; None if they do not fit into memory."""

    @property
    def blank(self) -> Item:
        """A conversation about a dummy image, without supervised tokens."""

    def collate(self, items: Sequence[Item], padding_side: str) -> dict[str, Tensor]:
        """Return a padded batch: input_ids, attention_mask, labels, and what else the model takes."""


@dataclass
class LoadedModel:
    """A model with everything that training and generation need.

    Args:
        model: called as model(input_ids, attention_mask, position_ids, pixel_values, labels); has generate.
        tokenizer: pads with <unk>.
        image_processor: PIL image to float32 (3, H, W).
        image_token_id: token id at image positions.
        image_seq_length: image positions per image; 0 if that varies.
        projector_prefix: prefix of the projector's parameter names, or several.
        block_prefixes: prefixes of parameter names, one per language-model block in forward order.
        tower: maps pixels (images, 3, H, W) to features (images, *feature_shape), the projector's input. The model
            accepts these features as pixel_values, in place of pixels.
        feature_shape: (patches, channels).
        vocab_size: rows of the output embedding.
        max_length: longest training sequence, in tokens.
        path: the checkpoint folder.
        encode: the family's function from prompt and image positions to tokens and labels.
        tower_path: folder of the vision tower, if the checkpoint has no tower.
        tower_prefix: what the names of the tower's parameters contain.
        inputs: makes the inputs of all records, in place of encode, image_processor and tower. Such models share no
            tokens between items, and keep no features of images.
        features: features of whole image sets; they stay valid, because no cell changes the tower.
        checked: image sets too large to keep, whose files have all been read once.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor
    image_token_id: int
    image_seq_length: int
    projector_prefix: str | tuple[str, ...]
    block_prefixes: list[str]
    tower: Callable[[Tensor], Tensor]
    feature_shape: tuple[int, int]
    vocab_size: int
    max_length: int
    path: Path
    encode: Callable[..., tuple[list[int], list[int]]] = prompt.encode
    tower_path: Path | None = None
    tower_prefix: str = "vision_tower"
    inputs: Inputs | None = None
    features: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    checked: set[Any] = field(default_factory=set, repr=False)

    @property
    def pad_token_id(self) -> int:
        """Token id at padded positions."""
        return self.tokenizer.pad_token_id

    @property
    def eos_token_id(self) -> int:
        """Token id that ends an answer."""
        return self.tokenizer.eos_token_id

    @cached_property
    def digest(self) -> str:
        """Content digest of the checkpoint."""
        return digest(self.path, self.tower_path)


def load(spec: ModelSpec, dtype: torch.dtype) -> LoadedModel:
    """Load the checkpoint that a model spec names.

    Args:
        spec: family, checkpoint folder, preprocess, max_length, vocab_size, vision_tower.
        dtype: dtype of all weights.

    Returns:
        The loaded model, in evaluation mode.

    Raises:
        UserError: unknown family; missing, truncated or mismatching checkpoint.
    """
    path = Path(spec.checkpoint)
    if not path.is_dir():
        raise UserError(
            f"model.checkpoint={spec.checkpoint!r} of model {spec.id!r} is not a folder. Fetch or make the "
            "checkpoint (python -m benchmark doctor says how), or give another path."
        )
    family = family_of(spec.family)
    fields = family.load(path, spec, dtype)
    if not getattr(family, "COMPLETE", False):
        fields["projector_prefix"], fields["block_prefixes"] = family.blocks(fields["model"])
        fields["encode"] = family.encode
    loaded = LoadedModel(**fields, max_length=spec.max_length, path=path)
    _settle(loaded)
    return loaded


def _settle(loaded: LoadedModel) -> None:
    """Replace a checkpoint's generation_config.json, where a penalty or sampling would change greedy answers.

    Raises:
        UserError: a special token of the tokenizer is the image token.
    """
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(loaded.tokenizer, name) for name in names}
    if loaded.image_token_id in ids.values():
        raise UserError(
            f"The tokenizer in {loaded.path} has the image's token {loaded.image_token_id} as its begin, end or pad "
            "token. Fetch the checkpoint again, or correct model.checkpoint."
        )
    loaded.model.generation_config = GenerationConfig(**ids)


def save(
    family: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preprocessor: dict[str, Any],
    path: Path,
) -> None:
    """Write a checkpoint folder that load can read.

    Args:
        family: one of FAMILIES.
        model: its weights have the dtype to store.
        tokenizer: its tokenizer.
        preprocessor: content of preprocessor_config.json.
        path: the folder, which is created.
    """
    family_of(family).save(model, tokenizer, preprocessor, Path(path))  # type: ignore[attr-defined]


def digest(path: str | Path, tower: Path | None = None) -> str:
    """Return the content digest of a checkpoint: weights, configurations and tokenizer, not the model card.

    Args:
        path: its folder.
        tower: folder of the vision tower, if the checkpoint has no tower.

    Raises:
        UserError: a folder does not exist or is empty.
    """
    from benchmark.models.digest_cache import checkpoint_digest

    found = checkpoint_digest([Path(path), *([tower] if tower else [])])
    assert found is not None
    return found


def trainable_names(loaded: LoadedModel, scope: str, last_layers: int, projector: Projector = "full") -> list[str]:
    """Return the names of the parameters that fine-tuning may change, projector first, then blocks in order.

    Embeddings, output layer, final norm and vision tower are always frozen (paper, section 4.1: the last L blocks and
    the projector train).

    Args:
        loaded: the model.
        scope: "last_layers" (L blocks and the projector), "all" (every block and the projector), "llm" (every block),
            "projector", "attention" (query, key, value and output projections of the L blocks), "gate_up", "mlp" (the
            same for these parts), or "re:PATTERN", searched in names such as layers.3.self_attn.q_proj.weight.
        last_layers: L.
        projector: "full", or "frozen" to leave the projector as it is.

    Returns:
        Names as in model.named_parameters().

    Raises:
        UserError: unknown scope, L outside 1 .. number of blocks, or a pattern that matches nothing.
    """
    names = [name for name, _ in loaded.model.named_parameters()]
    blocks = [[name.removeprefix(prefix) for name in names if name.startswith(prefix)] for prefix in
              loaded.block_prefixes]
    chosen = scopes.block_names(blocks, scope, last_layers)
    first = [name for name in names if name.startswith(loaded.projector_prefix)]
    return [
        *(first if scopes.projector_trains(scope, projector) else []),
        *(prefix + name for prefix, block in zip(loaded.block_prefixes, chosen, strict=True) for name in block),
    ]


def tuned_names(loaded: LoadedModel, train: TrainSpec) -> list[str]:
    """Return the names of the parameters that a cell's training settings choose; see `trainable_names`."""
    return trainable_names(loaded, train.scope, train.last_layers, train.projector)


def family_of(family: str) -> Family:
    """Return the module of a family.

    Raises:
        UserError: unknown family, or its module lacks one of the three functions.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family={family!r} is unknown.{did_you_mean(family, FAMILIES)}")
    module = importlib.import_module(FAMILIES[family])
    needed = ("load",) if getattr(module, "COMPLETE", False) else ("load", "encode", "blocks")
    lacking = [name for name in needed if not hasattr(module, name)]
    if lacking:
        raise UserError(f"The module {FAMILIES[family]} of model.family={family} lacks {', '.join(lacking)}.")
    return module  # type: ignore[return-value]  # a module has Family's functions without a class around them
