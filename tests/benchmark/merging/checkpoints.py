"""Small checkpoints for the tests of merges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmark.models import tiny

CONFIG = {"model_type": "odd", "architectures": ["OddModel"]}  # no class of transformers: names stay as they are


def write(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1, **config: object) -> Path:
    """Write tensors as a checkpoint of an unknown architecture, with its index if it has several shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted({*places.values()}):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder."""
    return {name: tensor for path in sorted(folder.rglob("*.safetensors")) for name, tensor in load_file(path).items()}


def llama(folder: Path, seed: int, dtype: torch.dtype = torch.bfloat16, **changes: object) -> Path:
    """Write a Llama in three shards or more, with its tokenizer."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=200, bos_token_id=1, eos_token_id=2, pad_token_id=0, **(sizes | changes))
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size="25KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder
