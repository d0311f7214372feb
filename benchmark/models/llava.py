"""LLaVA-1.5: CLIP tower, two-layer MLP, Llama, in the layout of llava-hf (facts: arXiv 2310.03744)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from benchmark.errors import UserError
from benchmark.files import canonical_json, write_atomic
from benchmark.models import folder as folders
from benchmark.models.vision import load_image_processor

PROJECTOR_PREFIX = "model.multi_modal_projector."
BLOCK_PREFIX = "model.language_model.layers."


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
    config = model.config
    vision = config.vision_config
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
