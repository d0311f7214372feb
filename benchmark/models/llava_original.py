"""LLaVA-1.5's own checkpoint layout (liuhaotian/llava-v1.5-7b, or re-saved by its training) and its CLIP folder."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmark.core.errors import UserError
from benchmark.models import folder as folders
from benchmark.models.checkpoint_files import FIX, promised, read_json, weight_files

ROWS = 64  # llava-hf pads its vocabulary to a multiple of this, after adding an image and a padding row
# Settings of LLaVA-1.5 that the code below assumes.
FIXED: dict[str, Any] = {
    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
}
LANGUAGE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "bos_token_id", "eos_token_id", "hidden_act",
)
# Names in the file -> names in transformers' class. A name that matches none is refused.
RENAMED = (
    (re.compile(r"model\.vision_tower\.vision_tower\.vision_model\."), "model.vision_tower."),
    (re.compile(r"model\.mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"model\.(?=embed_tokens\.|layers\.|norm\.)"), "model.language_model."),
    (re.compile(r"(?=lm_head\.)"), ""),
)
# Tables that older versions of transformers stored; they follow from the sizes and are computed again.
COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")


def read(path: Path, config: dict[str, Any], tower: Path, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Read a checkpoint of LLaVA's own layout into transformers' class.

    The vocabulary gets rows for an image and a padding token, as in llava-hf's layout. They are the mean of the other
    rows, so that their logits are never the largest.

    Args:
        path: the checkpoint: pytorch_model*.bin or model*.safetensors, with or without the tower's weights.
        config: the checkpoint's config.json.
        tower: folder of openai/clip-vit-large-patch14-336; its weights are used if the checkpoint has no tower.
        dtype: dtype of all weights.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: a file is missing or damaged, tensors do not match, or the model is not a LLaVA-1.5.
    """
    wrong = [f"{name}={config.get(name)!r}" for name, value in FIXED.items() if config.get(name, value) != value]
    if wrong:
        wanted = ", ".join(f"{name.partition('=')[0]}={FIXED[name.partition('=')[0]]!r}" for name in wrong)
        raise UserError(
            f"{path / 'config.json'} has {', '.join(wrong)}; LLaVA-1.5 has {wanted}. Use a LLaVA-1.5 checkpoint."
        )
    vision = read_json(tower / "config.json")
    vision = vision.get("vision_config", vision)
    words: int = config.get("vocab_size")  # type: ignore[assignment]  # what is not an int is missing, see below
    needed = ("vocab_size", "hidden_size", "num_hidden_layers")
    missing = [name for name in needed if not isinstance(config.get(name), int)]
    if missing:
        raise UserError(f"{path / 'config.json'} has no {', '.join(missing)}. {FIX}")
    language = {name: config[name] for name in LANGUAGE if name in config}
    if "rope_theta" in config:
        language["rope_theta"] = config["rope_theta"]
    sizes = CLIPVisionConfig(**{k: v for k, v in vision.items() if k not in ("model_type", "transformers_version")})
    full = LlavaConfig(
        vision_config=sizes.to_dict(),
        text_config=LlamaConfig(**language | {"vocab_size": padded_vocabulary(words)}).to_dict(),
        image_token_index=words,
        # CLIP's sizes are whole numbers; the class allows others.
        image_seq_length=(sizes.image_size // sizes.patch_size) ** 2,  # type: ignore[operator]
        tie_word_embeddings=False,
    )
    state = dict(_renamed(path))
    if not any(name.startswith("model.vision_tower.") for name in state):
        state |= _tower_state(tower)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = _padded(path, name, state[name], words)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with folders.quiet():
        # With output_loading_info it returns a pair, which transformers does not declare.
        model, info = LlavaForConditionalGeneration.from_pretrained(  # type: ignore[misc]
            None, config=full, state_dict=state, dtype=dtype, attn_implementation="sdpa", output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    folders.refuse_mismatch(
        path, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]  # type: ignore[has-type]
    )
    return model.eval()  # type: ignore[has-type]


def _renamed(path: Path) -> Iterator[tuple[str, Tensor]]:
    unknown = []
    for name, tensor in tensors(path):
        if name.endswith(COMPUTED):
            continue
        for pattern, new in RENAMED:
            if pattern.match(name):
                yield pattern.sub(new, name, count=1), tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"Checkpoint {path} has {len(unknown)} tensors that LLaVA-1.5 has not (first: {min(unknown)}). Use a "
            "full LLaVA-1.5 checkpoint, not an adapter or another version."
        )


def _tower_state(tower: Path) -> dict[str, Tensor]:
    """Return the vision part of a CLIP folder, which also has a text part."""
    prefix = "vision_model."
    state = {
        f"model.vision_tower.{name.removeprefix(prefix)}": tensor for name, tensor in tensors(tower)
        if name.startswith(prefix) and not name.endswith(COMPUTED)
    }
    if not state:
        raise UserError(f"{tower} has no CLIP vision weights ({prefix}*). Fetch openai/clip-vit-large-patch14-336.")
    return state


def _padded(path: Path, name: str, tensor: Tensor, words: int) -> Tensor:
    """Return an embedding with extra rows, each the mean of its rows."""
    if len(tensor) != words:
        raise UserError(
            f"Checkpoint {path}: vocab_size={words} in config.json, but {name} has {len(tensor)} rows. {FIX}"
        )
    mean = tensor.float().mean(0).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(padded_vocabulary(words) - words, -1)])


def padded_vocabulary(words: int) -> int:
    """Return the rows of a vocabulary in llava-hf's layout, with the image row (the first new one) and padding rows."""
    return -(-(words + 2) // ROWS) * ROWS


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a folder of safetensors or pickled tensors; no code of the file runs.

    Args:
        path: a folder with model*.safetensors or pytorch_model*.bin, in one file or in shards with an index.

    Raises:
        UserError: there are no weights, a shard is missing, a file is damaged, or a shard lacks a tensor of its index.
    """
    for file in weight_files(path):
        found = dict(tensors_of(file))
        lost = [name for name in promised(file) if name not in found]
        if lost:
            raise UserError(f"{file} lacks {lost[0]}, which its index says it holds. {FIX}")
        yield from found.items()


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of one file. A pickled file is mapped into memory and runs no code.

    Raises:
        UserError: the file is truncated or corrupt, or not a plain file of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    yield name, file.get_tensor(name)
        else:
            # Only an archive can be mapped into memory; a file of torch before 1.6 is not one.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            others = [name for name, value in found.items() if not isinstance(value, Tensor)]
            if others:
                raise pickle.UnpicklingError(f"{others[0]!r} is a {type(found[others[0]]).__name__}")
            yield from found.items()
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = shorten(str(error), 120) or "it ends too early"
        raise UserError(f"Checkpoint file {path} is truncated or corrupt ({reason}). {FIX}") from None
    except Exception as error:  # weights_only=True refused it, or it is not a dict of tensors
        reason = shorten(str(error), 120) if "weights_only" not in str(error) else "weights_only=True refuses it"
        raise UserError(f"Checkpoint file {path} is not a plain file of tensors ({reason}). {FIX}") from None
