"""LLaVA-1.5: CLIP tower, two-layer MLP, Llama, in llava-hf's layout or LLaVA's own (facts: arXiv 2310.03744)."""

# mypy: allow-redefinition
# (`load` has the file's and the model's configuration under one name)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    PreTrainedTokenizerBase,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, write_atomic
from benchmark.models import folder as folders
from benchmark.models import llava_original as original
from benchmark.models import places
from benchmark.models.checkpoint_files import read_json
from benchmark.models.prompt import encode as encode  # vicuna_v1
from benchmark.models.vision import load_image_processor

if TYPE_CHECKING:
    from benchmark.spec import ModelSpec

PROJECTOR_PREFIX = "model.multi_modal_projector."
BLOCK_PREFIX = "model.language_model.layers."


class FrozenTowerLlava(LlavaModel):
    """transformers' LlavaModel, which also takes what its tower has already made of the pixels."""

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return projected features of pixels (4 dimensions) or of tower features (3 dimensions)."""
        if pixel_values.dim() == 4:
            return super().get_image_features(pixel_values=pixel_values, **kwargs)
        return BaseModelOutputWithPooling(
            # One tensor per image, as LlavaModel returns them, though the field is declared as one tensor.
            pooler_output=list(self.multi_modal_projector(pixel_values))  # type: ignore[arg-type]
        )

    def get_tower_features(self, pixel_values: Tensor) -> Tensor:
        """Return (images, patches, channels), what the projector takes, from (images, 3, H, W)."""
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        drop_class = self.config.vision_feature_select_strategy == "default"
        return states[self.config.vision_feature_layer][:, int(drop_class) :]


class Head(nn.Linear):
    """An output layer of which only the first `rows` rows give logits; the others stay stored."""

    rows: int

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (..., rows) from (..., hidden)."""
        return F.linear(hidden, self.weight[: self.rows])


def _loss(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
    """Return transformers' loss over the rows that give logits, which are fewer than the configuration's vocab_size."""
    return ForCausalLMLoss(logits, labels, logits.shape[-1], **kwargs)


def load(path: Path, spec: ModelSpec, dtype: torch.dtype) -> dict:
    """Load a folder of either layout.

    Args:
        path: llava-hf's: config.json, model*.safetensors, tokenizer files, preprocessor_config.json. LLaVA's own:
            config.json, pytorch_model*.bin or model*.safetensors, tokenizer files, and a CLIP folder beside it.
        spec: preprocess: "pad" as in the original LLaVA (llava-hf's own processor crops), "crop" or "resize";
            vocab_size: rows of the output layer that count (LLaVA's 32,000; llava-hf stores 64 more); vision_tower.
        dtype: of all weights.

    Returns:
        The fields of LoadedModel that depend on the architecture.

    Raises:
        UserError: a file is missing, broken or does not match.
    """
    config = read_json(path / "config.json")
    tower_path = None
    if places.is_original(config):
        tower_path = places.tower(path, config, spec.vision_tower)
        model: LlavaForConditionalGeneration = original.read(path, config, tower_path, dtype)
        rows = spec.vocab_size or config["vocab_size"]
    elif config.get("model_type") == "llava" and "text_config" in config:
        model = folders.load_pretrained(  # type: ignore[assignment]  # of the class that it is given
            LlavaForConditionalGeneration, path, dtype=dtype, attn_implementation="sdpa"
        )
        rows = spec.vocab_size
    else:
        kind = " (a VILA folder: family vila)" if "llm_cfg" in config else ""
        raise UserError(
            f"{path / 'config.json'} has model_type={config.get('model_type')!r}{kind}; family llava needs 'llava' "
            "with a text_config (the llava-hf layout) or a mm_vision_tower (LLaVA's own). Correct model.family or "
            "model.checkpoint."
        )
    # Only now: transformers renames the tensors of released checkpoints for its own classes alone.
    model.model.__class__ = FrozenTowerLlava
    if rows is not None:
        limit(model, rows, path)
    config = model.config
    vision: CLIPVisionConfig = config.vision_config  # type: ignore[assignment]  # a loaded model has it as an object
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"{path / 'config.json'}: vision_feature_layer={config.vision_feature_layer} joins several layers, "
            "which is not LLaVA-1.5. Use a LLaVA-1.5 checkpoint."
        )
    # CLIP's sizes are whole numbers; the class allows others.
    patches = (vision.image_size // vision.patch_size) ** 2  # type: ignore[operator]  # whole numbers in a CLIP tower
    length = patches + (config.vision_feature_select_strategy == "full")
    if config.image_seq_length != length:
        raise UserError(
            f"{path / 'config.json'}: image_seq_length={config.image_seq_length}, but the tower gives "
            f"{length} features. Correct the file."
        )
    processor = load_image_processor(tower_path or path, spec.preprocess, spec.transparency)
    if (processor.height, processor.width) != (vision.image_size, vision.image_size):
        raise UserError(
            f"The image processor in {tower_path or path} makes {processor.height}x{processor.width} images, the "
            f"tower takes {vision.image_size}x{vision.image_size}. Correct its file."
        )
    return {
        "model": model,
        "tokenizer": folders.load_tokenizer(path, config.text_config.vocab_size),  # type: ignore[union-attr]  # likewise
        "image_processor": processor,
        "image_token_id": config.image_token_id,
        "image_seq_length": length,
        "tower": model.model.get_tower_features,
        "feature_shape": (length, vision.hidden_size),
        "vocab_size": rows or config.text_config.vocab_size,  # type: ignore[union-attr]  # likewise
        "tower_path": tower_path,
    }


def blocks(model: LlavaForConditionalGeneration) -> tuple[str, list[str]]:
    """Return the prefixes of parameter names of the projector, and of each block of the language model in order."""
    return PROJECTOR_PREFIX, [
        f"{BLOCK_PREFIX}{i}."
        for i in range(model.config.text_config.num_hidden_layers)  # type: ignore[union-attr]  # a loaded model has one
    ]


def limit(model: LlavaForConditionalGeneration, rows: int, path: Path) -> None:
    """Let only the first rows of the output layer give logits.

    Raises:
        UserError: it has fewer.
    """
    if rows > model.lm_head.out_features:
        raise UserError(
            f"model.vocab_size={rows}, but the output layer of {path} has {model.lm_head.out_features} rows. Set "
            "model.vocab_size=null, or use a checkpoint with this vocabulary."
        )
    model.lm_head.__class__ = Head
    model.lm_head.rows = rows
    model.loss_function = _loss


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
