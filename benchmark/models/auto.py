"""Any Hugging Face image-text-to-text model, with its own processor and chat template (docs/models.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from benchmark.core.errors import UserError, shorten
from benchmark.models import folder as folders
from benchmark.models import places
from benchmark.models.auto_inputs import AutoInputs
from benchmark.models.auto_parts import parts_of
from benchmark.models.auto_processor import load_conversation, load_processor
from benchmark.models.checkpoint_files import FIX, read_json, refuse_adapter

if TYPE_CHECKING:
    from benchmark.spec import ModelSpec

COMPLETE = True  # `load` returns the prefixes too, because they depend on the model's YAML file


def load(path: Path, spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """Load a checkpoint of any type.

    Args:
        path: config.json, model*.safetensors, the files of tokenizer and processor, a chat template.
        spec: max_length, transparency, the image settings, and the parts of a type that is not in the table.
        dtype: of all weights.

    Returns:
        The fields of LoadedModel.

    Raises:
        UserError: no such folder or type, a text-only or quantised model, no processor or chat template, a package that
            is missing, damaged files, or parts that do not fit.
    """
    inputs = load_inputs(path, spec)
    processor = inputs.processor
    # Attention is torch's scaled_dot_product_attention in every type that allows it, which is transformers' default.
    loader: Any = AutoModelForImageTextToText  # makes a PreTrainedModel, but is none
    model = folders.load_pretrained(loader, path, dtype=dtype)
    parts = parts_of(model, spec)
    tokenizer, blocks = processor.tokenizer, model.get_submodule(parts.decoder)
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"The tokenizer in {path} has {len(tokenizer)} tokens, the model only {rows} rows for them: they do not "
            f"belong together. {FIX}"
        )
    # An answer ends where its turn does, which in some templates is another token than the end of a text.
    tokenizer.eos_token = inputs.conversation.end
    return {
        "model": model,
        "tokenizer": tokenizer,
        "image_processor": processor.image_processor,
        "image_token_id": inputs.image_token_id,
        "image_seq_length": 0,
        "tower": _no_features,
        "feature_shape": (0, 0),
        "vocab_size": rows,
        "inputs": inputs,
        "projector_prefix": parts.projector_prefixes,
        "block_prefixes": [f"{parts.decoder}.{name}." for name, _ in blocks.named_children()],
        "tower_prefix": f"{parts.tower}.",
    }


def load_inputs(path: Path, spec: ModelSpec) -> AutoInputs:
    """Return how a checkpoint makes inputs of records; its weights are not read.

    Raises:
        UserError: see `load`.
    """
    config = read_config(path)
    if spec.preprocess != "processor":
        raise UserError(
            f"model.preprocess={spec.preprocess}: family auto uses the checkpoint's own processor. Set "
            "model.preprocess=processor."
        )
    if spec.vocab_size is not None:
        raise UserError(f"model.vocab_size={spec.vocab_size}: family auto uses all rows. Set model.vocab_size=null.")
    processor = load_processor(path, config, spec)
    chat = load_conversation(processor, config.model_type, path)
    return AutoInputs(chat, image_token(config), spec.max_length, spec.transparency)


def read_config(path: Path) -> PreTrainedConfig:
    """Return the configuration of a checkpoint that can be trained.

    Raises:
        UserError: no configuration, an unknown or text-only type, quantised weights, or an adapter.
    """
    refuse_adapter(path)
    raw = read_json(path / "config.json")
    kind = raw.get("model_type")
    if "llm_cfg" in raw or places.is_original(raw):
        layout, family = ("VILA's folders", "vila") if "llm_cfg" in raw else ("LLaVA's own layout", "llava")
        raise UserError(f"{path} has {layout}, which family auto does not read. Set model.family={family}.")
    if "quantization_config" in raw:
        method = raw["quantization_config"].get("quant_method", "a quantisation")
        raise UserError(
            f"{path} holds quantised weights ({method}). Fine-tuning changes weights by less than one quantisation "
            "step, so they cannot be trained. Use the checkpoint in bfloat16, float16 or float32."
        )
    try:
        with folders.quiet():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # of an unknown type, or of a configuration that its class refuses
        remote = " It comes with code of its own, which is never run." if "auto_map" in raw else ""
        raise UserError(
            f"{path / 'config.json'} has model_type={kind!r}, which transformers does not load here: "
            f"{shorten(str(error).strip().partition(chr(10))[0], 160)}.{remote} Use a checkpoint in transformers' own "
            "format (on the hub often named -hf)."
        ) from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(
            f"{path} is a model of model_type={kind!r}, which takes no images. Use an image-text-to-text model."
        )
    return config


def image_token(config: PreTrainedConfig) -> int:
    """Return the id at image positions.

    Raises:
        UserError: the configuration does not say.
    """
    for name in ("image_token_id", "image_token_index"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UserError(
        f"The configuration of model_type={config.model_type} names no image token, so images grow no sequence. Such "
        "models (cross-attention) are not supported."
    )


def _no_features(pixels: Tensor) -> Tensor:
    raise NotImplementedError("Family auto keeps no features of images: their number and companions differ.")
