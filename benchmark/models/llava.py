"""LLaVA-1.5: CLIP tower, two-layer MLP, Llama, in the layout of llava-hf (facts: arXiv 2310.03744)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmark.errors import UserError
from benchmark.files import canonical_json, write_atomic
from benchmark.models import folder as folders
from benchmark.models.vision import load_image_processor

PROJECTOR_PREFIX = "model.multi_modal_projector."
BLOCK_PREFIX = "model.language_model.layers."


class FrozenTowerLlava(LlavaModel):
    """transformers' LlavaModel, which also takes what its tower has already made of the pixels."""

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return projected features of pixels (4 dimensions) or of tower features (3 dimensions)."""
        if pixel_values.dim() == 4:
            return super().get_image_features(pixel_values=pixel_values, **kwargs)
        return BaseModelOutputWithPooling(pooler_output=list(self.multi_modal_projector(pixel_values)))

    def get_tower_features(self, pixel_values: Tensor) -> Tensor:
        """Return (images, patches, channels), what the projector takes, from (images, 3, H, W)."""
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        drop_class = self.config.vision_feature_select_strategy == "default"
        return states[self.config.vision_feature_layer][:, int(drop_class) :]


def load(path: Path, preprocess: str, dtype: torch.dtype) -> dict:
    """Load a llava-hf folder.

    Args:
        path: config.json, model*.safetensors, tokenizer files, preprocessor_config.json.
        preprocess: "pad" as in the original LLaVA (llava-hf's own processor crops), "crop" or "resize".
        dtype: of all weights.

    Returns:
        The fields of LoadedModel that depend on the architecture.

    Raises:
        UserError: a file is missing, broken or does not match.
    """
    config = folders.read_json(path / "config.json")
    if config.get("model_type") != "llava":
        raise UserError(
            f"{path / 'config.json'} has model_type={config.get('model_type')!r}, family llava needs 'llava' "
            "(the llava-hf layout). Correct model.family or model.checkpoint."
        )
    model = folders.load_pretrained(
        LlavaForConditionalGeneration, path, dtype=dtype, attn_implementation="sdpa"
    )
    # Only now: transformers renames the tensors of released checkpoints for its own classes alone.
    model.model.__class__ = FrozenTowerLlava
    config = model.config
    vision = config.vision_config
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"{path / 'config.json'}: vision_feature_layer={config.vision_feature_layer} joins several layers, "
            "which is not LLaVA-1.5. Use a LLaVA-1.5 checkpoint."
        )
    patches = (vision.image_size // vision.patch_size) ** 2
    length = patches + (config.vision_feature_select_strategy == "full")
    if config.image_seq_length != length:
        raise UserError(
            f"{path / 'config.json'}: image_seq_length={config.image_seq_length}, but the tower gives "
            f"{length} features. Correct the file."
        )
    processor = load_image_processor(path / "preprocessor_config.json", preprocess)
    if (processor.height, processor.width) != (vision.image_size, vision.image_size):
        raise UserError(
            f"{path / 'preprocessor_config.json'} makes {processor.height}x{processor.width} images, the "
            f"tower takes {vision.image_size}x{vision.image_size}. Correct the file."
        )
    return {
        "model": model,
        "tokenizer": folders.load_tokenizer(path),
        "image_processor": processor,
        "image_token_id": config.image_token_id,
        "image_seq_length": length,
        "projector_prefix": PROJECTOR_PREFIX,
        "block_prefixes": [f"{BLOCK_PREFIX}{i}." for i in range(config.text_config.num_hidden_layers)],
        "tower": model.model.get_tower_features,
        "feature_shape": (length, vision.hidden_size),
        "vocab_size": config.text_config.vocab_size,
    }


def save(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, preprocessor: dict, path: Path
) -> None:
    """Write a model in the layout that load reads.

    Args:
        model: with weights in the dtype to store.
        tokenizer: its tokenizer.
        preprocessor: content of preprocessor_config.json (size, crop_size, image_mean, image_std, resample).
        path: folder, created.
    """
    with folders.quiet():
        model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_atomic(path / "preprocessor_config.json", canonical_json(preprocessor))
