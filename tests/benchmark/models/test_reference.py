"""Our models beside the original LLaVA and VILA1.5 code, from pixels to loss (tests/reference/*_forward.json).

The figures are what the original code gave for the inputs of tests/benchmark/models/forward.py, in float32:
haotian-liu/LLaVA@c121f04 (train.py's preprocess, collator and process_images; LlavaLlamaForCausalLM) and
NVlabs/VILA@0085724 (its preprocessing, SigLIP, projector and prepare_inputs_labels_for_multimodal around a Llama).
"""

from __future__ import annotations

import hashlib
import json
from itertools import groupby

import numpy as np
import pytest
import torch

from benchmark.models.batch import Item
from benchmark.models.prompt import IGNORE, encode
from benchmark.spec import ROOT
from benchmark.training.objective import batch_loss, training_batch
from tests.benchmark.models import forward, tiny
from tests.benchmark.models.test_layouts import CLIP, write_clip, write_original

FAMILIES = ["llava", "vila"]
POSITIONS = (0, 20, 60, -1)


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tmp_path_factory):
    """Our model with the weights of the figures; LLaVA read from its own layout."""
    path, family = tmp_path_factory.mktemp(request.param), request.param
    loaded = tiny.load(family, tiny.write(family, path / "model"))
    forward.fill(loaded.model)
    if family == "llava":
        write_clip(path / CLIP, loaded, dtype=torch.float32)
        loaded = tiny.load(family, write_original(path / "original", loaded, dtype=torch.float32))
    figures = json.loads((ROOT / "tests" / "reference" / f"{family}_forward.json").read_text())
    return loaded, figures


def digest(values: list[int]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def item(loaded, sample: forward.Sample, length: int) -> Item:
    pair = encode(
        loaded.tokenizer, sample.question, sample.answer, True, loaded.image_token_id, loaded.image_seq_length, length
    )
    return Item(sample.question, *pair, loaded.image_processor.to_uint8(forward.picture(sample.size)))


def loss_of(loaded, items) -> float:
    count = sum(label != IGNORE for one in items for label in one.labels)
    batch = training_batch(loaded, [(one, 1 / count) for one in items])
    del batch["item_ids"]
    with torch.no_grad():
        return batch_loss(loaded.model, batch, autocast=False)[0].item()


@pytest.mark.parametrize("length", forward.LENGTHS)
def test_tokens_labels_and_truncation_are_the_originals(world, length):
    loaded, figures = world
    for sample, expected in zip(forward.SAMPLES, figures[str(length)]["samples"], strict=True):
        one = item(loaded, sample, 4096)
        ids = []
        for value, run in groupby(one.input_ids):
            ids += [-200] if value == loaded.image_token_id else list(run)
        assert len(ids) == expected["n_ids"] and digest(ids) == expected["ids"]
        labels = item(loaded, sample, length).labels
        assert len(labels) == expected["positions"] and digest(labels) == expected["labels"]
        assert sum(label != IGNORE for label in labels) == expected["supervised"]


def test_pixels_are_the_originals(world):
    loaded, figures = world
    for sample, expected in zip(forward.SAMPLES, figures["2048"]["samples"], strict=True):
        pixels = loaded.image_processor(forward.picture(sample.size))
        np.testing.assert_allclose(pixels.flatten()[::401], expected["pixels"], rtol=0, atol=1e-6)
        assert pixels.double().sum().item() == pytest.approx(expected["pixel_sum"], abs=1e-3)


@pytest.mark.parametrize("length", forward.LENGTHS)
def test_logits_and_losses_are_the_originals(world, length):
    loaded, figures = world
    expected = figures[str(length)]
    items = [item(loaded, sample, length) for sample in forward.SAMPLES]
    for one, figure in zip(items, expected["samples"], strict=True):
        with torch.no_grad():
            logits = loaded.model(
                input_ids=torch.tensor([one.input_ids]),
                pixel_values=loaded.image_processor.normalise(one.image[None]),
            ).logits[0]
        for position, values in zip(POSITIONS, figure["logits"], strict=True):
            np.testing.assert_allclose(logits[position][::29].numpy(), values, rtol=0, atol=1e-5)
        assert loss_of(loaded, [one]) == pytest.approx(figure["loss"], abs=1e-5)
    assert loss_of(loaded, items) == pytest.approx(expected["loss"], abs=1e-5)
