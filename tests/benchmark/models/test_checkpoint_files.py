"""Checkpoint folders as tools write them: what is loaded is what is checked and hashed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import benchmark.models
from benchmark.core.errors import UserError
from benchmark.models import check_weights
from benchmark.models.checkpoint_files import loaded_files, weight_files
from benchmark.spec import ROOT
from tests.benchmark.models import tiny
from tests.benchmark.models.test_layouts import CLIP, write_clip, write_original

# Published keys hold them.
SHIPPED = {
    "llava_pocket": "292f134c5f4d3f8924d29c23f3c6ec269c0515b122213cb6854a66fe8a692d67",
    "vila_pocket": "34815b6955c1c64348a54f48c5a908ce3241eed4339fc2295f23484c3d78bacb",
}


@pytest.fixture(scope="module", params=["llava", "vila"])
def made(request, tmp_path_factory):
    """A small checkpoint of each family and the folder of its language model's weights."""
    folder = tiny.write(request.param, tmp_path_factory.mktemp("made"))
    return request.param, folder


@pytest.fixture
def checkpoint(made, tmp_path):
    family, folder = made
    shutil.copytree(folder, tmp_path / "checkpoint")
    return family, tmp_path / "checkpoint"


def part(family, folder):
    return folder / "llm" if family == "vila" else folder


def shard(folder, old=False):
    """Write the single file's tensors as two shards; they are zeros if old."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        some = {name: tensors[name] * 0 if old else tensors[name] for name in names if places[name] == file}
        save_file(some, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_digests_of_the_shipped_checkpoints_stay(name):
    folder = ROOT / "benchmark" / "checkpoints" / name
    assert benchmark.models.digest(folder) == SHIPPED[name]


def test_a_single_file_beside_whole_shards_is_refused(checkpoint):
    """Two savings into one folder: transformers would load the single file, whichever is older."""
    family, folder = checkpoint
    shard(part(family, folder), old=True)
    for use in (lambda: tiny.load(family, folder), lambda: check_weights.check(folder), lambda: loaded_files(folder)):
        with pytest.raises(UserError, match="has its weights twice: model.safetensors, and 2 shards .*Delete"):
            use()


def test_an_index_without_its_shards_is_a_leftover(checkpoint):
    """transformers deletes the shards of an earlier save and leaves their index."""
    family, folder = checkpoint
    digest, state = benchmark.models.digest(folder), tiny.load(family, folder).model.state_dict()
    shard(part(family, folder), old=True)
    for path in part(family, folder).glob("model-0*"):
        path.unlink()
    check_weights.check(folder)
    again = tiny.load(family, folder)
    assert all(torch.equal(state[name], tensor) for name, tensor in again.model.state_dict().items())
    assert again.digest == digest


def test_shards_load_like_the_single_file(checkpoint):
    family, folder = checkpoint
    state = tiny.load(family, folder).model.state_dict()
    parts = [folder / name for name in ("llm", "vision_tower", "mm_projector")] if family == "vila" else [folder]
    for where in parts:
        shard(where)
        (where / "model.safetensors").unlink()
    check_weights.check(folder)
    assert all(torch.equal(state[name], t) for name, t in tiny.load(family, folder).model.state_dict().items())


@pytest.mark.parametrize("whole", [True, False], ids=["beside a model", "alone"])
def test_an_adapter_is_named_as_such(checkpoint, whole):
    family, folder = checkpoint
    where = part(family, folder)
    if not whole:
        (where / "model.safetensors").unlink()
    save_file({"base.lora_A.weight": torch.zeros(4, 8)}, where / "adapter_model.safetensors")
    (where / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    for use in (lambda: tiny.load(family, folder), lambda: check_weights.check(folder), lambda: loaded_files(folder)):
        with pytest.raises(UserError, match=r"is an adapter \(adapter_config.json\), .* Merge it first"):
            use()


def test_what_is_not_loaded_is_neither_checked_nor_hashed(checkpoint):
    """Unfinished states beside a final model, pickles beside safetensors, hidden folders, a trainer's own files."""
    family, folder = checkpoint
    digest, files = benchmark.models.digest(folder), loaded_files(folder)
    where = part(family, folder)
    for state in (folder / "checkpoint-500", where / "checkpoint-20", folder / "global_step20", folder / ".cache"):
        state.mkdir()
        (state / "model.safetensors").write_bytes(b"cut")
        (state / "config.json").write_text('{"hidden_size": 1000000000}')
    (where / "pytorch_model.bin").write_bytes(b"cut")
    (where / "training_args.bin").write_bytes(b"pickle")
    (where / "trainer_state.json").write_text("{}")
    check_weights.check(folder)
    assert loaded_files(folder) == files and benchmark.models.digest(folder) == digest
    tiny.load(family, folder)
    (where / "model.safetensors").write_bytes((where / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match="truncated or corrupt"):
        check_weights.check(folder)


def test_a_folder_of_states_alone_names_the_newest(tmp_path):
    for step in (500, 1000, 90):
        tiny.write("llava", tmp_path / f"checkpoint-{step}")
    for use in (lambda: tiny.load("llava", tmp_path), lambda: benchmark.models.digest(tmp_path)):
        with pytest.raises(UserError, match="holds 3 states of a training: give one of them, e.g. .*checkpoint-1000"):
            use()


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_pickled_weights_are_checked_too(tmp_path, kind):
    """LLaVA's own layout and CLIP's folder are read from pickles; a NaN in them was scored."""
    reference = tiny.load("llava", tiny.write("llava", tmp_path / "hf"))
    write_clip(tmp_path / CLIP, reference, kind)
    write_original(tmp_path / "original", reference, kind)
    for folder in (tmp_path / CLIP, tmp_path / "original"):
        config = (folder / "config.json").read_text()  # of a width that no tensor of the small model has
        (folder / "config.json").write_text(config.replace('"projection_dim": 768', '"projection_dim": 32').replace(
            '"projection_dim": 512', '"projection_dim": 32'
        ))
        check_weights.check(folder)
        path = weight_files(folder)[0]
        tensors = torch.load(path) if kind == "bin" else load_file(path)
        name = next(name for name in tensors if name.endswith("weight"))
        tensors[name].view(-1)[0] = float("nan")
        torch.save(tensors, path) if kind == "bin" else save_file(tensors, path)
        with pytest.raises(UserError, match=f"{path.name}: {name} has 1 numbers that are not finite"):
            check_weights.check(folder)


@pytest.mark.parametrize(("index", "reason"), [
    ({"weight_map": {"a": "../model.safetensors"}}, "names '../model.safetensors', which is not beside it"),
    ({"weight_map": {"a": None}}, "has no weight_map"), ({}, "has no weight_map"), ([], "is not a JSON object"),
])
def test_an_index_that_cannot_be_meant(tmp_path, index, reason):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=reason):
        weight_files(tmp_path)


def test_loose_shards_are_named(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(UserError, match="found model-00001-of-00002.safetensors, but no index of shards"):
        loaded_files(tmp_path)


def test_weights_that_the_configuration_names_are_refused(checkpoint):
    family, folder = checkpoint
    if family == "llava":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
        with pytest.raises(UserError, match="transformers_weights='other.safetensors': other weights than those"):
            tiny.load(family, folder)


def test_a_folder_that_transformers_5_saved(tmp_path):
    """model.save_pretrained and processor.save_pretrained, as a fine-tuning ends: processor_config.json alone."""
    source = tiny.write("llava", tmp_path / "source")
    out = tmp_path / "out"
    LlavaForConditionalGeneration.from_pretrained(source).save_pretrained(out)
    images = LlavaImageProcessorPil.from_pretrained(source)
    words = AutoTokenizer.from_pretrained(source)
    LlavaProcessor(images, words, patch_size=8, vision_feature_select_strategy="default").save_pretrained(out)
    assert not (out / "preprocessor_config.json").exists()
    loaded = tiny.load("llava", out)
    assert loaded.image_processor == tiny.load("llava", source).image_processor
