"""Qwen2.5-VL in miniature: a windowed tower for pictures of any size, a merger, a decoder with positions on three axes.

Sizes follow the public 3B: patches of 14 pixels joined 2 x 2, windows with full attention in every few blocks, fewer
heads for keys and values than for queries, and an output layer tied to the embedding. A drawn scene (112 x 112 pixels,
seen as 84 x 84) takes 9 tokens, one for each cell of its grid, a cover (96 x 112) 12, a diagram 8 or 12.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    apply_rotary_pos_emb_vision,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from benchmark.core.files import write_atomic
from benchmark.models.folder import quiet
from benchmark.models.prompt import IGNORE
from benchmark.pocket.pretrain.family import Family, Features, Modules, Part, Size, TokenGrid
from benchmark.pocket.pretrain.tokenizer import corpus, token_id, train_tokenizer

PATCH, MERGE = 14, 2
TOKEN = PATCH * MERGE
"""Side of an image token in pixels."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE = "<|image_pad|>"
MORE = ("<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>")
SYSTEM = "You are a helpful assistant."
# The public template without its parts for videos and numbered images.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + SYSTEM
    + "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Patches(NamedTuple):
    """Pictures of different sizes as rows of patches.

    Args:
        values: uint8 (pictures, most patches, 3 x 14 x 14), padded with zeros; blocks of 2 x 2 patches stay together.
        grids: rows and columns of patches of each picture.
    """

    values: Tensor
    grids: tuple[tuple[int, int], ...]


class Qwen(Family):
    """Qwen2.5-VL.

    Args:
        image_size: root of the largest number of pixels that the tower sees of a picture.
    """

    # Rotary frequencies go to the three axes in blocks, the highest to time and the lowest to columns. The public base
    # of 1e6 and sections of 16, 24 and 24 would turn a head of 32 by less than a thousandth from one column to the
    # next, so four columns would look alike. Here the fastest of the columns' turns by half a radian, and the slowest
    # seven by at most 0.03: attention needs slow ones to find a word by its content wherever it stands.
    text = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 14]},
    }
    vision = {
        "hidden_size": 128, "intermediate_size": 344, "depth": 4, "num_heads": 4, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "window_size": 2 * TOKEN, "fullatt_block_indexes": [1, 3], "out_hidden_size": 128,
    }
    language_folder = "language_qwen"
    dtype = torch.float32  # as fast on CPUs without bfloat16 instructions as on those with
    tower_batch = 64
    batch = 8
    # The merger's last layer has four times the inputs that the projectors of LLaVA and VILA have, so that Adam's steps
    # of equal size move a token four times as far. At the full rate one direction outgrew all that tell icons apart.
    projector_rate = 0.25
    places = 32

    @property
    def sizes(self) -> dict[str, int]:
        """Least and largest number of pixels of a picture, by the names of the image processor."""
        return {"shortest_edge": TOKEN**2, "longest_edge": self.image_size**2}

    def make_tokenizer(self, prompts: Mapping[str, str]) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the public special tokens and chat template."""
        tokenizer = train_tokenizer(corpus(prompts, ("system user assistant", SYSTEM)), SPECIAL, MORE)
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    def make_llm(self, tokenizer: PreTrainedTokenizerBase) -> Part:
        """Return a Qwen2: without images the three axes of positions are one, so it computes the same."""
        rope = {name: value for name, value in self.text["rope_parameters"].items() if name != "mrope_section"}
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **{**self.text, "rope_parameters": rope}))

    def make_tower(self) -> Part:
        """Return a tower; its merger is the model's projector, which the tower stage does not train."""
        return Qwen2_5_VisionTransformerPretrainedModel._from_config(Qwen2_5_VLVisionConfig(**self.vision))

    def make_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return a Qwen2.5-VL with initial weights."""
        start, end, image, video = (token_id(tokenizer, token) for token in MORE)
        config = Qwen2_5_VLConfig(
            text_config={**self.text, "vocab_size": len(tokenizer)}, vision_config=dict(self.vision),
            vision_start_token_id=start, vision_end_token_id=end, image_token_id=image, video_token_id=video,
            tie_word_embeddings=self.text["tie_word_embeddings"],
        )
        return Qwen2_5_VLForConditionalGeneration(config)

    def image_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the id of <|image_pad|>."""
        return token_id(tokenizer, IMAGE)

    def modules(self, model: PreTrainedModel) -> Modules:
        """Return the parts of a Qwen2.5-VL; the projector lies inside the tower."""
        assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
        tower = model.model.visual
        return Modules(tower, tower.merger, model.model.language_model, model.lm_head)

    def patches(self, size: Size) -> tuple[int, int]:
        """Return rows and columns of patches of a picture of a size."""
        width, height = size
        sizes = self.sizes
        down, across = smart_resize(height, width, TOKEN, sizes["shortest_edge"], sizes["longest_edge"])
        return down // PATCH, across // PATCH

    def pixels(self, images: Sequence[Image.Image]) -> Patches:
        """Return the patches of pictures, resized to whole tokens."""
        grids = tuple(self.patches(image.size) for image in images)
        values = np.zeros((len(images), max(map(math.prod, grids)), 3 * PATCH**2), dtype=np.uint8)
        for row, image, (rows, columns) in zip(values, images, grids, strict=True):
            size = (columns * PATCH, rows * PATCH)
            resized = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
            blocks = resized.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
            row[: rows * columns] = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1)
        return Patches(torch.from_numpy(values), grids)

    def features(self, tower: Part, pixels: Patches, dtype: torch.dtype) -> Features:
        """Return what the last block makes of each patch.

        The tower's own forward runs attention for each window of each picture in turn. One call with a mask gives the
        same numbers in a fraction of the time.
        """
        longest = pixels.values.shape[1]
        window = self.vision["window_size"] // PATCH
        layouts = [_layout(rows, columns, longest, window) for rows, columns in pixels.grids]
        places, windows = (torch.stack(parts) for parts in zip(*layouts, strict=True))
        present = windows >= 0
        hidden = F.linear(_normalise(pixels.values).to(dtype), _patch_weight(tower))
        cos, sin = tower.rotary_pos_emb(hidden, places.flatten(0, 1))
        rotary = cos.view(*present.shape, -1), sin.view(*present.shape, -1)
        everywhere, nearby = (_same(group)[:, None] for group in (present, windows))
        for number, block in enumerate(tower.blocks):
            mask = everywhere if number in tower.fullatt_block_indexes else nearby
            hidden = hidden + _attend(block.attn, block.norm1(hidden), rotary, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return Features(hidden, present, places)

    def project(self, projector: nn.Module, features: Features) -> Tensor:
        """Return image tokens (tokens, width): the merger joins four patches that follow each other."""
        return projector(features.values[features.present])

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, size: Size | None
    ) -> tuple[list[int], list[int]]:
        """Return (input_ids, labels) of the chat template's conversation."""
        image = ""
        if size is not None:
            rows, columns = self.patches(size)
            image = f"<|vision_start|>{IMAGE * (rows * columns // MERGE**2)}<|vision_end|>"
        question = (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{image}{prompt.strip()}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer  # a call of its wrapper takes much longer
        asked, answered = (
            backend.encode(text, add_special_tokens=False).ids for text in (question, f"{answer.strip()}<|im_end|>")
        )
        return asked + answered, [IGNORE] * len(asked) + answered

    def positions(self, ids: Sequence[int], image_token_id: int, size: Size | None) -> list[Any]:
        """Return (time, row, column) of each token; text goes on after the longer side of the picture."""
        if size is None:
            return [(place, place, place) for place in range(len(ids))]
        rows, columns = (side // MERGE for side in self.patches(size))
        start = ids.index(image_token_id)
        image = [(start, start + row, start + column) for row in range(rows) for column in range(columns)]
        rest = range(start + max(rows, columns), start + max(rows, columns) + len(ids) - start - len(image))
        return [*((place,) * 3 for place in range(start)), *image, *((place,) * 3 for place in rest)]

    def grid(self, size: Size) -> TokenGrid:
        """Return the grid of tokens, which covers the picture exactly."""
        rows, columns = (side // MERGE for side in self.patches(size))
        return TokenGrid(rows, columns, 1 / columns, 1 / rows)

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        """Write a checkpoint as transformers does, which family auto loads."""
        images = Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=MERGE, size=self.sizes, image_mean=list(MEAN), image_std=list(STD)
        )
        with quiet():
            model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        images.save_pretrained(path)
        write_atomic(path / "processor_config.json", json.dumps({"processor_class": "Qwen2_5_VLProcessor"}) + "\n")


@cache
def _layout(rows: int, columns: int, longest: int, window: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each patch, (longest, 2), and the number of its window, (longest,), -1 at padding.

    Args:
        rows: of patches.
        columns: of patches.
        longest: patches of the largest picture in the batch.
        window: side of a window in patches.
    """
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    blocks = grid.view(rows // MERGE, MERGE, columns // MERGE, MERGE, 2).transpose(1, 2).reshape(-1, 2)
    numbers = blocks[:, 0] // window * columns + blocks[:, 1] // window
    padding = longest - len(blocks)
    return F.pad(blocks, (0, 0, 0, padding)), F.pad(numbers, (0, padding), value=-1)


def _same(groups: Tensor) -> Tensor:
    """Return (pictures, patches, patches), True where two patches are in one group."""
    return groups[:, :, None] == groups[:, None, :]


def _normalise(values: Tensor) -> Tensor:
    """Return bytes of patches (..., 3 x 14 x 14) as the image processor normalises them, float32."""
    mean, std = (torch.tensor(channels).repeat_interleave(PATCH**2) for channels in (MEAN, STD))
    return values.float().div_(255).sub_(mean).div_(std)


def _patch_weight(tower: Part) -> Tensor:
    """Return the weight (width, 3 x 14 x 14) for one frame: the processor shows each picture twice, as a short film."""
    return tower.patch_embed.proj.weight.sum(2).flatten(1)


def _attend(attention: Part, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Return a block's attention on padded pictures, (pictures, patches, width)."""
    heads = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = heads.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.proj(seen.transpose(1, 2).flatten(2))
