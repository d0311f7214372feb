"""Prompt tuning: learned embeddings before the first token. They cannot be merged into weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmark.core.errors import UserError
from methods.adapter import AdapterMethod, load_adapter, wrap
from methods.attention import VirtualTokens, check_kernel, register
from methods.peft import check_positive

if TYPE_CHECKING:
    from benchmark.training.adapters import Samples

NAME = ".prompt"  # of the tensor, behind the embedding's name


@dataclass(frozen=True)
class PromptTuningParams:
    """tokens: number of virtual tokens."""

    tokens: int = 20

    def __post_init__(self) -> None:
        check_positive(tokens=self.tokens)


class Prompted(nn.Module):
    """An input embedding with the virtual tokens beside it. No id stands for them; the decoder reads them.

    Args:
        base_layer: the embedding, which computes as before.
        prompt: (tokens, hidden), embeddings.
    """

    def __init__(self, base_layer: nn.Module, prompt: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prompt = nn.Parameter(prompt)

    @property
    def weight(self) -> Tensor:
        """The embedding's rows, for code that looks at them."""
        return self.base_layer.get_parameter("weight")

    def get_base_layer(self) -> nn.Module:
        """Return the embedding."""
        return self.base_layer

    def forward(self, ids: Tensor) -> Tensor:
        return self.base_layer(ids)


def enter(model: nn.Module, path: str, prompt: Tensor) -> VirtualTokens:
    """Put virtual tokens before the first token of a model's decoder.

    Args:
        model: changed in place.
        path: of the decoder's input embedding.
        prompt: (tokens, hidden), embeddings.

    Returns:
        The hooks on the decoder.
    """
    prompted = wrap(model, path, Prompted, prompt)
    assert isinstance(prompted, Prompted)
    decoder = model.get_submodule(path.rpartition(".")[0])
    return VirtualTokens(decoder, lambda: prompted.prompt.to(prompted.weight.dtype))


def load(model: nn.Module, folder: Path | str) -> nn.Module:
    """Put an exported prompt and its projector into their base model, for use with transformers alone.

    Args:
        model: the base, changed in place; it must use sdpa attention.
        folder: from `python -m benchmark export`, with adapter_model.safetensors.

    Returns:
        The model.

    Raises:
        ValueError: the prompt is not one for this model.
    """
    register()
    return load_adapter(model, folder, NAME, lambda embedding, prompt: enter(model, embedding, prompt))


class PromptTuning(AdapterMethod):
    """Prompt tuning: h = decoder([P; X]), with learned embeddings P before those of all tokens, X.

    Granularity: none; no weight of the decoder changes. Tensors: P (tokens, hidden), and the whole projector, whichever
    blocks train.scope names. Acts: never; P is no weight, so it stays in the model and is not merged. Extra memory:
    tokens x hidden, near 0 |M|.
    Source: Lester et al., EMNLP 2021; 20 tokens, peft's usual number. P begins as the embeddings of different tokens of
    the vocabulary, which the seed draws.
    Disagreements: the paper draws from the 5,000 most common tokens. The peft library begins with a normal distribution
    unless it is told otherwise, and a padded batch has its padding between P and the prompt there; here P stands right
    before each sample's first token. The image follows P and sees it, as all tokens do.
    Variants: none; prompt_tuning is the class as it is.
    """

    Params = PromptTuningParams
    layers = "embedding"
    merges = False

    def refuses(self, engine: str) -> str | None:
        if engine != "zero3":
            return None
        return (
            "the decoder reads the virtual tokens outside of the layer that holds them, and ZeRO-3 gathers tensors "
            "layer by layer. Train on engine=zero2."
        )

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        check_kernel("prompt_tuning", model)
        (path,) = layers
        embedding = model.get_submodule(path)
        if not any("rotary" in name for name, _ in model.get_submodule(path.rpartition(".")[0]).named_modules()):
            raise UserError(
                "method=prompt_tuning needs rotary position embeddings, which this model's decoder lacks. Use "
                "method=prefix."
            )
        register()
        weight = embedding.get_parameter("weight")
        if self.params.tokens > len(weight):
            raise UserError(f"method.tokens={self.params.tokens} is above the {len(weight)} tokens of the vocabulary.")
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randperm(len(weight), generator=generator)[: self.params.tokens]
        with torch.no_grad():
            prompt = embedding(ids.to(weight.device)).clone()
        # Only the way back: what the decoder has made of the virtual tokens is no state of a training.
        self._remove = enter(model, path, prompt).remove

    def leave(self) -> None:
        self._remove()
