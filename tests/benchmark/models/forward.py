"""Small models, images and conversations that numpy's generator makes: the inputs of the reference figures."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from tests.benchmark.models import tiny


@dataclass(frozen=True)
class Sample:
    """One conversation about one image (width, height)."""

    question: str
    answer: str
    size: tuple[int, int]


# An answer with a space at its end would differ: we cut it off, the original code has a token for it.
SAMPLES = [
    Sample("what colour is this animal ?", "red", (37, 23)),
    Sample("what is this?\nAnswer the question using a single word.", "a blue dog  and a cat;", (23, 40)),
    Sample(" A or B? ", "B", (30, 30)),
    Sample("what ?", "; ".join(["a red cat red cat blue dog, a single word"] * 4), (11, 12)),
]
LENGTHS = (2048, 110)  # maximum lengths; the second cuts the last answer


def fill(model: nn.Module) -> None:
    """Set every weight from its name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = np.random.default_rng(zlib.crc32(name.encode()))
            values = random.standard_normal(tuple(parameter.shape), dtype=np.float64)
            if parameter.ndim > 1:
                values *= parameter[0].numel() ** -0.5
            else:
                values = values * 0.1 + ("weight" in name)  # norms near one, biases near zero
            parameter.copy_(torch.from_numpy(values))


def picture(size: tuple[int, int]) -> Image.Image:
    """Return noise of a size."""
    values = np.random.default_rng(size[0] * 1000 + size[1]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Return the small tokenizer as Llama's is: it puts the begin token in front of every text."""
    from tokenizers.processors import TemplateProcessing

    words = tiny.tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words.model_max_length = max_length
    return words
