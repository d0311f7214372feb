"""A cell's prompt or prefix as an adapter folder that `PeftModel.from_pretrained(base, folder)` of peft loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaModel, apply_rotary_pos_emb

from benchmark.core.files import canonical_json, write_atomic
from benchmark.models import LoadedModel
from methods.adapter import FILE

PROMPT, PREFIX = ".prompt", ".prefix"


def write(loaded: LoadedModel, delta: Mapping[str, Tensor], base: str, path: Path) -> bool:
    """Write the folder, if the library has a type for the adapter.

    The library knows no Houlsby adapter, and its prefix tuning has a prefix in every block: softmax leaves no keys and
    values that would count for nothing in the others.

    Args:
        loaded: the model with base weights.
        delta: of the cell, with the tensors of its adapter.
        base: name of the base model, for the configuration.
        path: folder, created.

    Returns:
        Whether it was written.
    """
    adapter = _prompt(loaded, delta) or _prefix(loaded, delta)
    if adapter is None:
        return False
    config, embeddings = adapter
    tensors = {"prompt_embeddings": embeddings.contiguous()}
    prefixes = loaded.projector_prefix if isinstance(loaded.projector_prefix, tuple) else (loaded.projector_prefix,)
    tuned = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in delta)]
    if tuned:  # such modules are stored whole
        tensors |= {
            f"base_model.{name}": delta.get(name, value.detach())
            for name, value in loaded.model.named_parameters() if name.startswith(tuple(tuned))
        }
        config["modules_to_save"] = [prefix.removesuffix(".") for prefix in tuned]
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in tensors.items()}, path / FILE, metadata={"format": "pt"})
    write_atomic(path / "adapter_config.json", canonical_json({
        "base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True,
        "num_transformer_submodules": 1, "num_layers": len(loaded.block_prefixes), **config,
    }))
    return True


def _prompt(loaded: LoadedModel, delta: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensor] | None:
    """Return (fields of the configuration, embeddings) of virtual tokens; None if the library cannot place them."""
    found = next((value for name, value in delta.items() if name.endswith(PROMPT)), None)
    # The library embeds the ids itself, before the model puts the image in. VILA's image has an id without a row.
    if found is None or getattr(loaded.model.config, "image_token_id", 0) < 0:
        return None
    return {
        "peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(found), "token_dim": found.shape[1],
        "num_attention_heads": loaded.model.config.get_text_config().num_attention_heads,
    }, found


def _prefix(loaded: LoadedModel, delta: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensor] | None:
    """Return (fields of the configuration, keys and values) of a prefix in every block of a Llama; None otherwise.

    The library gives its keys the first positions, and all tokens later ones. Ours have none, so they are rotated by
    the number of positions that tokens move.
    """
    decoder = loaded.model.get_submodule(loaded.block_prefixes[0].rsplit(".layers.", 1)[0])
    names = [
        f"{block}self_attn.{kind}_proj{PREFIX}" for block in loaded.block_prefixes for kind in "kv"
    ]
    if not isinstance(decoder, LlamaModel) or any(name not in delta for name in names):
        return None
    config = loaded.model.config.get_text_config()
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    tokens = len(delta[names[0]])
    cos, sin = decoder.rotary_emb(torch.zeros(1, 1, dtype=torch.float32), torch.tensor([[tokens]]))
    columns = []
    for name in names:
        part = delta[name]
        if name.endswith(f"k_proj{PREFIX}"):
            keys = part.float().view(tokens, heads, size).transpose(0, 1)[None]
            part = apply_rotary_pos_emb(keys, keys, cos, sin)[0][0].transpose(0, 1).reshape(tokens, -1).to(part)
        columns.append(part)
    return {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": tokens, "token_dim": heads * size,
        "num_attention_heads": heads, "prefix_projection": False, "encoder_hidden_size": heads * size,
    }, torch.cat(columns, 1)
