"""Models of any size with random weights, created on the device, for measurements of speed and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from benchmark.config.request import request
from benchmark.models import LoadedModel, family_of, llava, vila
from benchmark.models import folder as folders
from benchmark.models.sizes import Architecture, Tower
from benchmark.models.vision import ImageProcessor
from benchmark.spec import at_root

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LLAVA_WORDS = 32000
TowerConfig = TypeVar("TowerConfig", CLIPVisionConfig, SiglipVisionConfig)


def random_model(sizes: Architecture, device: str, dtype: str) -> LoadedModel:
    """Return a model with random weights and everything that training and generation need.

    Args:
        sizes: sizes of the model.
        device: device on which it is created, without a copy in host memory.
        dtype: dtype of its weights.
    """
    text = LlamaConfig(
        vocab_size=sizes.vocab, hidden_size=sizes.hidden, intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    cls: type[LlavaForConditionalGeneration | vila.VilaForConditionalGeneration]
    config: LlavaConfig | vila.VilaConfig
    if sizes.family == "llava":
        cls, mode = LlavaForConditionalGeneration, "pad"
        config = LlavaConfig(
            vision_config=_tower(CLIPVisionConfig, sizes.tower), text_config=text, image_token_index=LLAVA_WORDS,
            image_seq_length=sizes.image_tokens,
        )
    else:
        cls, mode = vila.VilaForConditionalGeneration, "resize"
        config = vila.VilaConfig(text_config=text, vision_config=_tower(SiglipVisionConfig, sizes.tower))
    with torch.device(device):
        model = cls._from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    if isinstance(model, LlavaForConditionalGeneration):
        model.model.__class__ = llava.FrozenTowerLlava
        llava.limit(model, LLAVA_WORDS, Path("random"))
    projector, blocks = family_of(sizes.family).blocks(model)
    side = sizes.tower.image
    loaded = LoadedModel(
        model=model,
        tokenizer=folders.load_tokenizer(_tokenizer(sizes.family), sizes.vocab),
        image_processor=ImageProcessor(mode, side, side, side, MEAN, STD),
        image_token_id=config.image_token_id,
        image_seq_length=sizes.image_tokens,
        projector_prefix=projector,
        block_prefixes=blocks,
        tower=model.model.get_tower_features if sizes.family == "llava" else model.get_tower_features,
        feature_shape=(sizes.tower.patches, sizes.tower.hidden),
        vocab_size=LLAVA_WORDS if sizes.family == "llava" else sizes.vocab,
        max_length=4096,
        path=Path("random"),
    )
    loaded.__dict__["digest"] = "random"  # there is no checkpoint
    return loaded


def _tower(cls: type[TowerConfig], sizes: Tower) -> TowerConfig:
    return cls(
        hidden_size=sizes.hidden, intermediate_size=sizes.intermediate, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, image_size=sizes.image, patch_size=sizes.patch,
    )


def _tokenizer(family: str) -> Path:
    """Return the tokenizer folder of a family's model in the default profile."""
    folder = next(at_root(model.checkpoint) for model in request([], grid=False).models if model.family == family)
    return folder / "llm" if (folder / "llm").is_dir() else folder
