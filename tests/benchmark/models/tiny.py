"""Random models of both families, small enough for a unit test."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

import benchmark.models
from benchmark.models import LoadedModel
from benchmark.models.prompt import SYSTEM
from benchmark.models.vila import VilaConfig, VilaForConditionalGeneration

WORDS = "what colour is this animal ? Answer the question using a single word. red blue cat dog A B"
CORPUS = [f"{SYSTEM} USER: \nASSISTANT:", WORDS, "0123456789 abcdefghijklmnopqrstuvwxyz .,:;'?!</>"]
PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
IMAGE_SIZE = {"llava": 24, "vila": 40}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return coloured noise, the same in every run; PIL's own depends on what ran before it."""
    noise = np.random.default_rng((seed, width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@dataclass(frozen=True)
class TinySpec:
    """The fields of ModelSpec that loading reads."""

    id: str
    family: str
    checkpoint: str
    preprocess: str
    max_length: int = 256
    name: str = "tiny"
    learning_rate: float = 1e-3
    projector_learning_rate: float = 1e-4
    vision_tower: str | None = None
    vocab_size: int | None = None
    transparency: str = "drop"


@functools.cache
def _tokenizer_json() -> str:
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    raw.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return raw.to_str()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer with Metaspace words and ids <unk> 0, <s> 1, </s> 2, as Llama's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="right",
        model_max_length=2048,
    )


def text_config(vocab_size: int, **changes: int) -> LlamaConfig:
    """Return a Llama of four narrow blocks."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaConfig(vocab_size=vocab_size, max_position_embeddings=512, **ids, **(sizes | changes))


def write(family: str, folder: Path, **changes: int) -> Path:
    """Write a random checkpoint folder.

    Args:
        family: "llava" or "vila".
        folder: destination.
        changes: sizes of the language model.

    Returns:
        The folder.
    """
    words = tokenizer()
    size = IMAGE_SIZE[family]
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(7)
    if family == "llava":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=size, patch_size=8, **vision),
            text_config=text_config(len(words) + 1, **changes),
            image_token_index=len(words),
            image_seq_length=9,
        )
        model = LlavaForConditionalGeneration(config)
        preprocessor = PREPROCESSOR | {
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
        }
    else:
        config = VilaConfig(
            text_config=text_config(len(words), **changes),
            vision_config=SiglipVisionConfig(image_size=size, patch_size=8, **vision),
        )
        model = VilaForConditionalGeneration(config)
        preprocessor = PREPROCESSOR | {
            "size": {"height": size, "width": size},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
    # The default range of 0.02 gives answers that hardly depend on the input at this width.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    benchmark.models.save(family, model, words, preprocessor, folder)
    return folder


def spec(family: str, folder: Path) -> TinySpec:
    """Return the spec of a folder made by write."""
    return TinySpec(f"{family}_tiny", family, str(folder), {"llava": "pad", "vila": "resize"}[family])


def load(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a folder made by write."""
    return benchmark.models.load(spec(family, folder), dtype)
