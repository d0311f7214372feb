"""LLaVA and VILA in miniature: equal Llamas and tokenizers, square images, one position per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import benchmark.models
from benchmark.models.prompt import ASSISTANT, SYSTEM, USER, encode
from benchmark.models.vila import IMAGE_TOKEN_ID, VilaConfig, VilaForConditionalGeneration
from benchmark.models.vision import ImageProcessor
from benchmark.pocket.pretrain.family import Family, Features, Modules, Part, Size, TokenGrid
from benchmark.pocket.pretrain.tokenizer import corpus, token_id, train_tokenizer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONGEST = 4096
"""Tokens of a turn; none is as long."""


class LlamaFamily(Family):
    """What LLaVA and VILA have in common.

    Args:
        image_size: side in pixels of the tower's input.
    """

    text = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "num_attention_heads": 4,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
        "patch_size": 16,
    }
    language_folder = "language"
    dtype = torch.bfloat16
    name: str  # in benchmark.models
    processor: ImageProcessor
    image_tokens: int  # per picture

    def make_tokenizer(self, prompts: Mapping[str, str]) -> PreTrainedTokenizerBase:
        """Return the tokenizer that both families share; <image> is its last token."""
        return train_tokenizer(corpus(prompts, (f"{SYSTEM} {USER} ", ASSISTANT)))

    def make_llm(self, tokenizer: PreTrainedTokenizerBase) -> Part:
        """Return a Llama with initial weights."""
        return LlamaForCausalLM(self._text(tokenizer))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return uint8 (pictures, 3, H, W)."""
        return torch.stack([self.processor.to_uint8(image) for image in images])

    def project(self, projector: nn.Module, features: Features) -> Tensor:
        """Return image tokens (pictures, tokens, width)."""
        return projector(features.values)

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, size: Size | None
    ) -> tuple[list[int], list[int]]:
        """Return (input_ids, labels) of a vicuna_v1 conversation."""
        image_token_id = self.image_token_id(tokenizer)
        return encode(tokenizer, prompt, answer, size is not None, image_token_id, self.image_tokens, LONGEST)

    def positions(self, ids: Sequence[int], image_token_id: int, size: Size | None) -> list[Any]:
        """Return 0, 1, 2 and so on."""
        return list(range(len(ids)))

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        """Write a checkpoint in the layout of the family."""
        processor = self.processor
        size = {"height": processor.height, "width": processor.width}
        shape = {"size": size} if processor.mode == "resize" else {
            "size": {"shortest_edge": processor.short_edge}, "crop_size": size,
        }
        preprocessor = {**shape, "image_mean": processor.mean, "image_std": processor.std, "resample": 3}
        benchmark.models.save(self.name, model, tokenizer, preprocessor, path)

    def _text(self, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
        return LlamaConfig(vocab_size=len(tokenizer), **self.text)

    @property
    def _sizes(self) -> dict[str, Any]:
        """Settings of the tower's configuration."""
        return {**self.vision, "image_size": self.image_size}


class Llava(LlamaFamily):
    """CLIP tower, whose patches are the image tokens, and a two-layer projector.

    Args:
        image_size: side in pixels; 96 gives 6 x 6 patches.
    """

    name = "llava"

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size)
        self.processor = ImageProcessor("pad", image_size, image_size, image_size, CLIP_MEAN, CLIP_STD)
        self.image_tokens = (image_size // self.vision["patch_size"]) ** 2

    def make_tower(self) -> Part:
        """Return a CLIP tower. Eager attention is the fastest on CPUs in bfloat16."""
        return CLIPVisionModel._from_config(CLIPVisionConfig(**self._sizes), attn_implementation="eager")

    def make_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return a LLaVA with initial weights."""
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**self._sizes),
            text_config=self._text(tokenizer),
            image_token_index=self.image_token_id(tokenizer),
            image_seq_length=self.image_tokens,
            vision_feature_layer=-2,
        )
        return LlavaForConditionalGeneration(config)

    def image_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the id of <image>."""
        return token_id(tokenizer, "<image>")

    def modules(self, model: PreTrainedModel) -> Modules:
        """Return the parts of a LLaVA."""
        assert isinstance(model, LlavaForConditionalGeneration)
        inner = model.model
        return Modules(inner.vision_tower, inner.multi_modal_projector, inner.language_model, model.lm_head)

    def features(self, tower: Part, pixels: Tensor, dtype: torch.dtype) -> Features:
        """Return hidden_states[-2] without the class token."""
        hidden = tower.pre_layrnorm(tower.embeddings(self.processor.normalise(pixels).to(dtype)))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return Features(hidden[:, 1:])

    def grid(self, size: Size) -> TokenGrid:
        """Return the grid of patches; the picture is centred on a square, so this holds for square pictures."""
        side = self.image_size // self.vision["patch_size"]
        return TokenGrid(side, side, 1 / side, 1 / side)


class Vila(LlamaFamily):
    """SigLIP tower; the projector joins 2 x 2 patches.

    Args:
        image_size: side in pixels; 112 gives 7 x 7 patches, padded to 8 x 8 and joined 2 x 2.
    """

    name = "vila"

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size)
        self.processor = ImageProcessor("resize", image_size, image_size, image_size, (0.5,) * 3, (0.5,) * 3)
        self.image_tokens = VilaConfig(vision_config=SiglipVisionConfig(**self._sizes)).image_seq_length

    def make_tower(self) -> Part:
        """Return a SigLIP tower. Eager attention is the fastest on CPUs in bfloat16."""
        return SiglipVisionModel._from_config(SiglipVisionConfig(**self._sizes), attn_implementation="eager")

    def make_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return a VILA with initial weights."""
        vision = SiglipVisionConfig(**self._sizes)
        return VilaForConditionalGeneration(VilaConfig(text_config=self._text(tokenizer), vision_config=vision))

    def image_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return VILA's id, which no token has."""
        return IMAGE_TOKEN_ID

    def modules(self, model: PreTrainedModel) -> Modules:
        """Return the parts of a VILA."""
        assert isinstance(model, VilaForConditionalGeneration)
        return Modules(model.vision_tower, model.mm_projector, model.llm.model, model.llm.lm_head)

    def features(self, tower: Part, pixels: Tensor, dtype: torch.dtype) -> Features:
        """Return hidden_states[-2]."""
        hidden = tower.embeddings(self.processor.normalise(pixels).to(dtype))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return Features(hidden)

    def grid(self, size: Size) -> TokenGrid:
        """Return the grid of 2 x 2 patches; half of the last row and column may be outside the picture."""
        side, share = round(self.image_tokens**0.5), 2 * self.vision["patch_size"] / self.image_size
        return TokenGrid(side, side, share, share, by_column=True)
