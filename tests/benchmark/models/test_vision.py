"""The image processor against transformers' PIL processors and the formula."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import benchmark.models
from benchmark.core.errors import UserError
from benchmark.data import Record
from benchmark.models.batch import Items
from benchmark.models.vision import ImageProcessor, expand2square, load_image_processor
from benchmark.spec import input_form
from tests.benchmark.cells import cell_of_tiny
from tests.benchmark.models import tiny
from tests.benchmark.models.tiny import PREPROCESSOR, picture

SIZES = [(37, 23), (23, 37), (30, 30), (64, 48), (7, 51), (11, 12)]
MEAN, STD = tuple(PREPROCESSOR["image_mean"]), tuple(PREPROCESSOR["image_std"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_pad_and_crop_equal_llava(size, mode):
    ours = ImageProcessor(mode, 24, 24, 24, MEAN, STD)(picture(*size))
    theirs = LlavaImageProcessorPil(
        do_pad=mode == "pad", size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )(picture(*size), return_tensors="pt")["pixel_values"][0]
    assert ours.dtype == torch.float32 and ours.shape == (3, 24, 24)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-7)


@pytest.mark.parametrize("size", SIZES)
def test_resize_equals_siglip(size):
    ours = ImageProcessor("resize", 24, 24, 24, (0.5,) * 3, (0.5,) * 3)(picture(*size))
    theirs = SiglipImageProcessorPil(size={"height": 24, "width": 24})(picture(*size), return_tensors="pt")
    torch.testing.assert_close(ours, theirs["pixel_values"][0], rtol=0, atol=5e-7)


def test_padding_colour_and_offset():
    square = np.array(expand2square(Image.new("RGB", (3, 6), (9, 9, 9)), (122, 116, 104)))
    assert (square[:, 1:4] == 9).all()
    assert (square[:, [0, 4, 5]] == [122, 116, 104]).all()
    pixels = ImageProcessor("pad", 6, 6, 6, MEAN, STD).to_uint8(Image.new("RGB", (3, 6), (9, 9, 9)))
    assert pixels[:, 0, 0].tolist() == [122, 116, 104]


def test_every_level_is_normalised_like_float64_rounded_once():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    ours = ImageProcessor("resize", 16, 16, 16, MEAN, STD).normalise(levels)
    exact = (np.arange(256) / 255 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    np.testing.assert_allclose(ours.view(3, 256).numpy(), exact, rtol=0, atol=5e-7)


def test_grey_and_transparent_images_become_rgb():
    processor = ImageProcessor("pad", 8, 8, 8, MEAN, STD)
    assert processor(Image.new("L", (5, 9))).shape == processor(Image.new("RGBA", (5, 9))).shape == (3, 8, 8)


@pytest.mark.parametrize("family", ["llava", "vila"])
def test_the_model_says_what_becomes_of_transparency(tmp_path, family):
    """By default what the original sees, the colour; the setting reaches the pixels and the key."""
    folder, path = tiny.write(family, tmp_path / "base"), tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(path)
    records = [Record("1", "gqa", "test", path, "Q?", "a", ("a",), None, "g")]
    seen = {}
    for setting in ("drop", "white"):
        loaded = benchmark.models.load(replace(tiny.spec(family, folder), transparency=setting), torch.float32)
        features = Items(loaded, records, supervised=True)[0].image
        image = Image.new("RGB", (8, 8), (255, 0, 0) if setting == "drop" else "white")
        torch.testing.assert_close(features, loaded.tower(loaded.image_processor(image)[None])[0])
        seen[setting] = input_form(cell_of_tiny(transparency=setting).model)
    assert "transparency" not in seen["drop"] and seen["white"] == {**seen["drop"], "transparency": "white"}


STATS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 28}}


def sizes(folder, mode="crop"):
    processor = load_image_processor(folder, mode)
    return processor.short_edge, processor.height, processor.width, processor.resample


def test_file_layouts(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(STATS | CROP))
    assert sizes(tmp_path) == (40, 24, 28, 3)
    path.write_text(json.dumps(STATS | {"size": 32, "resample": 2}))
    assert sizes(tmp_path, "pad") == (32, 32, 32, 2)


def test_processor_config_of_transformers_5(tmp_path):
    """It is the only file that version 5 writes; where both lie, it is the one that transformers reads."""
    plain, nested = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    LlavaImageProcessorPil(**CROP, image_mean=[0.1] * 3).save_pretrained(tmp_path)
    plain.unlink(missing_ok=True)
    nested.write_text(json.dumps({"image_processor": STATS | CROP, "patch_size": 14, "image_token": "<image>"}))
    assert sizes(tmp_path) == (40, 24, 28, 3)
    plain.write_text(json.dumps(STATS | {"size": 32}))
    assert sizes(tmp_path) == (40, 24, 28, 3)
    assert LlavaImageProcessorPil.from_pretrained(tmp_path).crop_size["width"] == 28
    nested.write_text(json.dumps({"patch_size": 14}))  # as version 4 wrote it, beside the other
    assert sizes(tmp_path) == (32, 32, 32, 3)


def test_null_is_not_set(tmp_path):
    nothing = {"crop_size": None, "resample": None, "do_pad": None, "data_format": None}
    size = {"height": 32, "width": 32, "shortest_edge": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(STATS | nothing | {"size": size}))
    assert sizes(tmp_path, "resize") == (32, 32, 32, 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**STATS, "size": None, "image_mean": None}))
    with pytest.raises(UserError, match="it sets no size, image_mean"):
        sizes(tmp_path)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="preprocessor_config.json is missing, and there is no processor_config.json"):
        sizes(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(UserError, match="preprocessor_config.json cannot be read as JSON"):
        sizes(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(STATS | {"size": [32]}))
    with pytest.raises(UserError, match="preprocessor_config.json is not a valid"):
        sizes(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'crop'"):
        sizes(tmp_path, "crp")
