"""A third family, as a user would add one: patches through a linear layer into Qwen2, and another conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from benchmark.models import folder as folders
from benchmark.models.prompt import IGNORE
from benchmark.models.vision import ImageProcessor
from tests.benchmark.models import tiny

SIDE, PATCH = 16, 8
PATCHES = (SIDE // PATCH) ** 2


class Third(Qwen2ForCausalLM):
    """Qwen2 with what the suite asks of a model: pixels or tower features, frozen tower, trainable projector."""

    input_modalities = ("image", "text")

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.tower = nn.Conv2d(3, 6, PATCH, PATCH)
        self.connector = nn.Linear(6, config.hidden_size)
        self.post_init()

    def tower_features(self, pixel_values: Tensor) -> Tensor:
        """Return (images, patches, channels)."""
        return self.tower(pixel_values).flatten(2).transpose(1, 2)

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None, **kwargs: Any,
    ) -> Any:
        """Write the image features at the image positions, then run Qwen2."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values is not None:
                features = pixel_values if pixel_values.dim() == 3 else self.tower_features(pixel_values)
                where = input_ids == self.config.vocab_size - 1
                inputs_embeds = inputs_embeds.masked_scatter(where[..., None], self.connector(features))
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)


def load(path: Path, spec: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Load a folder made by write."""
    model = folders.load_pretrained(Third, path, dtype=dtype, attn_implementation="sdpa")
    rows = model.config.vocab_size
    return {
        "model": model, "tokenizer": folders.load_tokenizer(path, rows),
        "image_processor": ImageProcessor("resize", SIDE, SIDE, SIDE, (0.5,) * 3, (0.5,) * 3),
        "image_token_id": rows - 1, "image_seq_length": PATCHES, "tower": model.tower_features,
        "feature_shape": (PATCHES, 6), "vocab_size": rows,
    }


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str | None, has_image: bool, image_token_id: int,
    image_seq_length: int, max_length: int,
) -> tuple[list[int], list[int]]:
    """Tokenise "Q: <image>prompt A: answer</s>"."""
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    image = [image_token_id] * (image_seq_length * has_image)
    asked = [tokenizer.bos_token_id, *ids("Q:"), *image, *ids(f" {prompt} A:")]
    answer = [] if target is None else [*ids(f" {target}"), tokenizer.eos_token_id]
    return (asked + answer)[:max_length], ([IGNORE] * len(asked) + answer)[:max_length]


def blocks(model: Third) -> tuple[str, list[str]]:
    """Return the prefixes of the projector's and the blocks' parameter names."""
    return "connector.", [f"model.layers.{i}." for i in range(model.config.num_hidden_layers)]


def write(folder: Path) -> Path:
    """Write a random checkpoint."""
    words = tiny.tokenizer()
    torch.manual_seed(3)
    model = Third(Qwen2Config(
        vocab_size=len(words) + 1, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256,
    ))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
