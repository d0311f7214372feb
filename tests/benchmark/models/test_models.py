"""Both families: full-size parameter counts, layouts, forward passes against plain references, broken folders."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import benchmark.models
from benchmark.core.errors import UserError
from benchmark.core.progress import images_told
from benchmark.data.record import Record
from benchmark.models import LoadedModel, llava, trainable_names, vila
from benchmark.models.batch import Item, Items, collate, split_start, start_cache
from benchmark.models.prompt import encode
from tests.benchmark.models import tiny

FAMILIES = ["llava", "vila"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: tiny.write(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders):
    return {family: tiny.load(family, folder) for family, folder in folders.items()}


def item(loaded, name, question, answer, seed):
    """An encoded conversation; a seed of None leaves out the image."""
    size = loaded.image_processor.height
    pixels = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    pair = encode(
        loaded.tokenizer, question, answer, seed is not None, loaded.image_token_id, loaded.image_seq_length, 256
    )
    return Item(name, *pair, pixels)


def mixed(loaded):
    return [
        item(loaded, "a", "what colour is this animal?", "red", 1),
        item(loaded, "b", "what?", "a blue dog", None),
        item(loaded, "c", "A or B?", "B", 2),
    ]


# ---- full size, on the meta device


def on_meta(cls, config, prefixes):
    with torch.device("meta"):
        model = cls(config)
    blocks = [f"{prefixes.BLOCK_PREFIX}{i}." for i in range(config.text_config.num_hidden_layers)]
    return LoadedModel(
        model=model,
        tokenizer=None,
        image_processor=None,
        image_token_id=config.image_token_id,
        image_seq_length=config.image_seq_length,
        projector_prefix=prefixes.PROJECTOR_PREFIX,
        block_prefixes=blocks,
        tower=None,
        feature_shape=None,
        vocab_size=config.text_config.vocab_size,
        max_length=2048,
        path=None,
    )


def count(loaded, names=None):
    return sum(p.numel() for name, p in loaded.model.named_parameters() if names is None or name in names)


def test_llava_full_size_counts():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5),
    )
    loaded = on_meta(LlavaForConditionalGeneration, config, llava)
    assert count(loaded) == 7_063_427_072
    assert count(loaded, set(trainable_names(loaded, "last_layers", 2))) == 425_746_432
    assert loaded.image_seq_length == 576


def vila_config():
    return vila.VilaConfig(
        text_config=LlamaConfig(
            vocab_size=32000, hidden_size=2560, intermediate_size=6912, num_hidden_layers=32, num_attention_heads=20,
            max_position_embeddings=4096, rms_norm_eps=1e-5,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
            patch_size=14,
        ),
    )


def test_vila_full_size_counts():
    loaded = on_meta(vila.VilaForConditionalGeneration, vila_config(), vila)
    assert count(loaded) == 3_148_150_336
    assert count(loaded, set(trainable_names(loaded, "last_layers", 2))) == 176_971_776
    assert loaded.image_seq_length == 196
    shapes = {name: tuple(p.shape) for name, p in loaded.model.mm_projector.named_parameters()}
    assert shapes == {
        "layers.1.weight": (4608,), "layers.1.bias": (4608,), "layers.2.weight": (2560, 4608),
        "layers.2.bias": (2560,), "layers.4.weight": (2560, 2560), "layers.4.bias": (2560,),
    }


# ---- which tensors train


@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_names(models, family):
    loaded = models[family]
    names = trainable_names(loaded, "last_layers", 2)
    assert names[0].startswith(loaded.projector_prefix)
    blocks = [name for name in names if not name.startswith(loaded.projector_prefix)]
    assert {name.partition("layers.")[2].partition(".")[0] for name in blocks} == {"2", "3"}
    assert len(blocks) == 2 * 9 and blocks[0].partition("layers.")[2][0] == "2"
    everything = trainable_names(loaded, "all", 2)
    assert set(names) < set(everything) and len(everything) == len(names) + 2 * 9
    assert not any(part in name for name in everything for part in ("embed", "lm_head", "vision_tower", "model.norm"))
    assert trainable_names(loaded, "projector", 2) == names[: len(names) - len(blocks)]
    with pytest.raises(UserError, match="Choose 1 to 4"):
        trainable_names(loaded, "last_layers", 5)
    with pytest.raises(UserError, match="Did you mean 'projector'"):
        trainable_names(loaded, "projctor", 2)


# ---- forward passes


def test_downsample_is_column_major_and_pads_below_and_right():
    side, channels = 5, 2
    features = torch.randn(2, side * side, channels)
    grid = features.view(2, side, side, channels)
    rows = []
    for column in range(3):
        for row in range(3):
            cell = []
            for dy in (0, 1):
                for dx in (0, 1):
                    y, x = 2 * row + dy, 2 * column + dx
                    cell.append(grid[:, y, x] if y < side and x < side else torch.zeros(2, channels))
            rows.append(torch.cat(cell, dim=1))
    assert torch.equal(vila.Downsample()(features), torch.stack(rows, dim=1))
    even = torch.randn(1, 16, channels)
    first = even.view(4, 4, channels)[:2, :2].reshape(-1)
    assert torch.equal(vila.Downsample()(even)[0, 0], first)


def test_vila_equals_its_three_parts_run_by_hand(models):
    loaded = models["vila"]
    model = loaded.model
    sample = item(loaded, "a", "what colour?", "red", 3)
    batch = collate(loaded, [sample], "right")
    with torch.no_grad():
        states = model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states
        assert len(states) == 4
        x = vila.Downsample()(states[-2])
        layers = model.mm_projector.layers
        x = F.layer_norm(x, (64,), layers[1].weight, layers[1].bias, 1e-5)
        x = F.linear(F.gelu(F.linear(x, layers[2].weight, layers[2].bias)), layers[4].weight, layers[4].bias)
        ids = sample.input_ids
        start = ids.index(-200)
        table = model.llm.model.embed_tokens
        embeddings = torch.cat([table(torch.tensor(ids[:start])), x[0], table(torch.tensor(ids[start + 9 :]))])[None]
        expected = model.llm(inputs_embeds=embeddings).logits
        got = model(**batch)
    torch.testing.assert_close(got.logits, expected, rtol=0, atol=1e-5)
    nll = F.cross_entropy(expected[0, :-1], torch.tensor(sample.labels[1:]), ignore_index=-100)
    torch.testing.assert_close(got.loss, nll)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_its_items_alone(models, family):
    loaded = models[family]
    items = mixed(loaded)
    for side in ("right", "left"):
        batch = collate(loaded, items, side)
        assert batch["pixel_values"].shape[0] == 2
        with torch.no_grad():
            together = loaded.model(**batch).logits
            for row, one in enumerate(items):
                alone = loaded.model(**collate(loaded, [one], side)).logits[0]
                real = together[row][batch["attention_mask"][row].bool()]
                torch.testing.assert_close(real, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_matters_and_its_count_is_checked(models, family):
    loaded = models[family]
    batch = collate(loaded, [item(loaded, "a", "what?", "red", 1)], "right")
    other = batch | {"pixel_values": batch["pixel_values"].flip(-1)}
    with torch.no_grad():
        assert (loaded.model(**batch).logits - loaded.model(**other).logits).abs().max() > 1e-2
        with pytest.raises(ValueError, match="image"):
            loaded.model(**batch | {"pixel_values": batch["pixel_values"].repeat(2, 1, 1, 1)})


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_features_stand_in_for_pixels(models, family, tmp_path):
    loaded = models[family]
    batch = collate(loaded, mixed(loaded), "right")
    with torch.no_grad():
        features = loaded.tower(batch["pixel_values"])
        assert features.shape == (2, *loaded.feature_shape)
        by_features = loaded.model(**batch | {"pixel_values": features}).logits
        torch.testing.assert_close(by_features, loaded.model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_items_keep_tower_features_and_fall_back_to_pixels(models, family, tmp_path, monkeypatch):
    loaded = models[family]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for seed, path in enumerate(paths):
        tiny.picture(33, 20, seed).save(path)
    images = [paths[0], None, paths[1], paths[0], paths[2]]
    records = [
        Record(str(i), "toy", "train", image, f"what {i}?", "red", ("red",), None, str(i), {})
        for i, image in enumerate(images)
    ]
    calls = []
    tower = loaded.tower
    monkeypatch.setattr(loaded, "tower", lambda pixels: calls.append(len(pixels)) or tower(pixels))
    items = Items(loaded, records, supervised=True)
    again = Items(loaded, records, supervised=False)
    assert calls == [3] and items.in_memory and torch.equal(again[2].image, items[2].image)
    pixels = loaded.image_processor(Image.open(paths[0]))[None]
    torch.testing.assert_close(items[3].image, tower(pixels)[0].detach(), rtol=0, atol=1e-5)
    assert items[1].image is None and not items[0].image.requires_grad
    stacked = collate(loaded, [items[i] for i in range(5)], "right")
    assert stacked["pixel_values"].shape == (4, *loaded.feature_shape)

    tiny.picture(33, 20, 3).save(paths[0])  # another content under the same name
    assert not torch.equal(Items(loaded, records, supervised=False)[0].image, items[0].image)
    assert calls == [3, 3]

    monkeypatch.setattr("benchmark.models.batch.FEATURE_BYTES", 0)
    monkeypatch.setattr(loaded, "features", {})
    large = Items(loaded, records, supervised=True)
    assert not large.in_memory and large[0].image.dtype == torch.uint8 and calls == [3, 3]
    fresh = Items(loaded, records[3:4], supervised=True)
    monkeypatch.undo()
    with torch.no_grad():
        by_pixels = loaded.model(**collate(loaded, [fresh[0]], "right")).logits
        by_features = loaded.model(**collate(loaded, [Items(loaded, records, True)[3]], "right")).logits
    torch.testing.assert_close(by_features, by_pixels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_memory", [True, False])
def test_reading_images_tells_how_far_it_is(models, tmp_path, monkeypatch, in_memory):
    loaded = models["llava"]
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for seed, path in enumerate(paths):
        tiny.picture(33, 20, seed).save(path)
    records = [
        Record(str(i), "toy", "train", image, "what?", "red", ("red",), None, str(i), {})
        for i, image in enumerate([*paths, paths[0], None])
    ]
    monkeypatch.setattr("benchmark.models.batch.TOWER_BATCH", 2)
    if not in_memory:
        monkeypatch.setattr("benchmark.models.batch.FEATURE_BYTES", 0)
    monkeypatch.setattr(loaded, "features", {})
    monkeypatch.setattr(loaded, "checked", set())
    told = []
    with images_told(lambda *report: told.append(report)):
        Items(loaded, records, supervised=True)
        Items(loaded, records, supervised=True)  # known by now: nothing is read
    assert told == ([(2, 5), (4, 5), (5, 5)] if in_memory else [(done, 5) for done in range(1, 6)])
    Items(loaded, records[:1], supervised=True)  # nobody listens any more
    assert len(told) == (3 if in_memory else 5)


def test_shared_start_ends_before_images_and_answers(models):
    loaded = models["vila"]

    def made(ids, labels=None):
        return Item("x", ids, labels or [-100] * len(ids), None)

    image = loaded.image_token_id
    assert split_start(loaded, [made([1, 5, 6, 7]), made([1, 5, 8])])[0] == [1, 5]
    assert split_start(loaded, [made([1, 5, image, 7]), made([1, 5, image, 7])])[0] == [1, 5]
    assert split_start(loaded, [made([1, 5, 6])])[0] == [1, 5]
    start, rest = split_start(loaded, [made([1, 5, 6, 9, 2], [-100, -100, -100, 9, 2])] * 2)
    assert start == [1, 5] and rest[1].input_ids == [6, 9, 2] and rest[1].labels == [-100, 9, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_run_once_changes_neither_logits_nor_gradients(folders, family):
    """Keys and values of the shared start, computed once, pass on the gradients of the whole batch."""
    loaded = tiny.load(family, folders[family])
    items = mixed(loaded)
    names = trainable_names(loaded, "last_layers", 2)
    parameters = dict(loaded.model.named_parameters())
    start, rest = split_start(loaded, items)
    assert len(start) > 20

    def gradients(logits, labels):
        loaded.model.zero_grad()
        F.cross_entropy(logits[:, :-1][labels[:, 1:] != -100], labels[:, 1:][labels[:, 1:] != -100]).backward()
        return {name: parameters[name].grad.clone() for name in names}

    whole = collate(loaded, items, "right")
    logits = loaded.model(**whole).logits
    expected = gradients(logits, whole["labels"])
    batch = collate(loaded, rest, "right")
    ones = batch["attention_mask"].new_ones(3, len(start))
    batch["attention_mask"] = torch.cat([ones, batch["attention_mask"]], dim=1)
    batch["position_ids"] += len(start)
    labels = batch.pop("labels")
    cache = start_cache(loaded.model, torch.tensor([start]), 3)
    cut = loaded.model(**batch, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(cut, logits[:, len(start) :], rtol=0, atol=2e-5)
    for name, gradient in gradients(cut, labels).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_the_sentinel_id_needs_no_embedding_row(models):
    loaded = models["vila"]
    assert loaded.model.llm.model.embed_tokens.num_embeddings == loaded.vocab_size == len(loaded.tokenizer)
    assert not 0 <= loaded.image_token_id < loaded.vocab_size
    with pytest.raises(ValueError, match="9 image positions, pixel_values give 0"):
        batch = collate(loaded, [item(loaded, "a", "what?", "red", 1)], "right")
        loaded.model(**{key: value for key, value in batch.items() if key != "pixel_values"})


def test_cached_generation_equals_a_full_forward_per_token(models):
    loaded = models["vila"]
    batch = collate(loaded, [item(loaded, "a", "what?", None, 1)], "left")
    batch.pop("labels")
    cached = loaded.model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    with torch.no_grad():
        for _ in range(6):
            step = loaded.model(input_ids=ids, pixel_values=pixels, logits_to_keep=1).logits
            assert step.shape[1] == 1
            ids = torch.cat([ids, step[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, ids)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_with_checkpointing_and_frozen_tower(folders, family):
    loaded = tiny.load(family, folders[family])
    names = trainable_names(loaded, "last_layers", 2)
    loaded.model.requires_grad_(False)
    parameters = dict(loaded.model.named_parameters())
    for name in names:
        parameters[name].requires_grad_(True)

    def gradients():
        loaded.model.zero_grad()
        loaded.model.train()(**collate(loaded, mixed(loaded), "right")).loss.backward()
        return {name: parameters[name].grad.clone() for name in names}

    plain = gradients()
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    assert all(p.grad is None for name, p in parameters.items() if name not in plain)
    loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)


# ---- folders


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_again_in_another_dtype(models, folders, family, tmp_path):
    again = tiny.load(family, folders[family])
    for (name, ours), (other, theirs) in zip(
        models[family].model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs) and theirs.dtype == torch.float32
    half = copy.deepcopy(again.model).to(torch.bfloat16)
    preprocessor = tiny.PREPROCESSOR | {"size": 24 if family == "llava" else 40}
    benchmark.models.save(family, half, again.tokenizer, preprocessor, tmp_path)
    loaded = tiny.load(family, tmp_path, torch.float32)
    state = half.state_dict()
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[name].float()), name
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not loaded.model.training


def test_llava_hub_names_load(models, folders, tmp_path):
    """The released llava-hf files are three float16 shards with older names (facts/models.md 1.2)."""
    from tests.benchmark.models.test_layouts import write_shards

    shutil.copytree(folders["llava"], tmp_path, dirs_exist_ok=True)
    renamed = {}
    for name, tensor in models["llava"].model.state_dict().items():
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
        name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
        name = name.replace("model.language_model.", "language_model.model.")
        renamed[name.replace("lm_head", "language_model.lm_head")] = tensor.half()
    (tmp_path / "model.safetensors").unlink()
    write_shards(tmp_path, renamed, "safetensors", count=3)
    state = tiny.load("llava", tmp_path).model.state_dict()
    for name, tensor in models["llava"].model.state_dict().items():
        assert torch.equal(tensor.half().float(), state[name]), name
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00003.safetensors, which model"):
        tiny.load("llava", tmp_path)


def test_vila_public_layout_loads(models, folders, tmp_path):
    """Old tensor names and old config keys, as in Efficient-Large-Model/VILA1.5-3b (facts/models.md 2.2)."""
    shutil.copytree(folders["vila"], tmp_path, dirs_exist_ok=True)
    model = models["vila"].model
    tower = {f"vision_model.{name}": tensor for name, tensor in model.vision_tower.state_dict().items()}
    save_file(tower, tmp_path / "vision_tower" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    old = {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "bfloat16", "_name_or_path": "./llm"}
    config["llm_cfg"] = {k: v for k, v in config["llm_cfg"].items() if "rope" not in k and k != "dtype"} | old
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = tiny.load("vila", tmp_path).model
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    batch = collate(models["vila"], mixed(models["vila"]), "right")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    # The parts are plain transformers checkpoints.
    assert isinstance(LlamaForCausalLM.from_pretrained(tmp_path / "llm"), LlamaForCausalLM)
    assert isinstance(SiglipVisionModel.from_pretrained(folders["vila"] / "vision_tower"), SiglipVisionModel)


WEIGHTS = {"llava": "model.safetensors", "vila": "llm/model.safetensors"}


def break_file(name):
    def apply(family, folder):
        path = folder / (WEIGHTS[family] if name.startswith("weights") else "config.json")
        if name == "weights missing":
            path.rename(path.with_name("pytorch_model.bin"))
        elif name == "weights truncated":
            path.write_bytes(path.read_bytes()[:-100])
        elif name == "weights cut in the header":
            path.write_bytes(path.read_bytes()[:20])
        elif name == "weights incomplete":
            tensors = load_file(path)
            tensors.pop(next(key for key in tensors if "layers.2.mlp" in key))
            save_file(tensors, path, metadata={"format": "pt"})
        elif name == "weights of another shape":
            tensors = load_file(path)
            key = next(key for key in tensors if "layers.2.mlp" in key)
            tensors[key] = tensors[key][:5].clone()
            save_file(tensors, path, metadata={"format": "pt"})
        elif name == "config missing":
            path.unlink()
        elif name == "config broken":
            path.write_text('{"model_type": ')
        return path

    return apply


FAULTS = {
    "weights missing": "has no model.*found pytorch_model.bin; only safetensors",
    "weights truncated": "is truncated or corrupt",
    "weights cut in the header": "is truncated or corrupt",
    "weights incomplete": "1 tensors missing .first: .*layers.2.mlp",
    "weights of another shape": "1 tensors of another shape .first: .*layers.2.mlp",
    "config missing": "config.json is missing",
    "config broken": "config.json cannot be read as JSON",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_checkpoints_are_named(folders, family, fault, tmp_path, capfd):
    shutil.copytree(folders[family], tmp_path, dirs_exist_ok=True)
    path = break_file(fault)(family, tmp_path)
    with pytest.raises(UserError, match=FAULTS[fault]) as error:
        tiny.load(family, tmp_path)
    assert str(path.parent) in str(error.value) and "Fetch the checkpoint again" in str(error.value)
    assert capfd.readouterr().out == ""


def test_vila_projector_faults_are_named(folders, tmp_path):
    shutil.copytree(folders["vila"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "mm_projector" / "model.safetensors"
    tensors = load_file(path)
    tensors["layers.9.weight"] = tensors.pop("layers.4.weight")
    tensors["layers.2.bias"] = tensors["layers.2.bias"][:3].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="layers.4.weight.*layers.9.weight.*layers.2.bias"):
        tiny.load("vila", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mm_projector_cfg"]["mm_projector_type"] = "mlp_downsample_2x2_fix"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="mlp_downsample_2x2_fix"):
        tiny.load("vila", tmp_path)


def test_wrong_family_size_tokenizer_and_path(folders, tmp_path):
    with pytest.raises(UserError, match=r"model_type='llava_llama' \(a VILA folder: family vila\); family llava needs"):
        tiny.load("llava", folders["vila"])
    with pytest.raises(UserError, match="is not a folder"):
        tiny.load("llava", tmp_path / "nowhere")
    with pytest.raises(UserError, match="Did you mean 'vila'"):
        benchmark.models.load(tiny.TinySpec("x", "villa", str(folders["vila"]), "pad"), torch.float32)
    shutil.copytree(folders["llava"], tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer in .* does not load"):
        tiny.load("llava", tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer.json"):
        tiny.load("llava", tmp_path / "a")
    shutil.copytree(folders["llava"], tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"image_seq_length": 10}))
    with pytest.raises(UserError, match="image_seq_length=10, but the tower gives 9"):
        tiny.load("llava", tmp_path / "b")
    shutil.copytree(folders["llava"], tmp_path / "c")
    (tmp_path / "c" / "preprocessor_config.json").write_text(json.dumps(tiny.PREPROCESSOR | {"size": 32}))
    with pytest.raises(UserError, match="makes 32x32 images, the tower takes 24x24"):
        tiny.load("llava", tmp_path / "c")


def test_digest_follows_content_only(folders, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    shutil.copytree(folders["vila"], first)
    shutil.copytree(folders["vila"], second)
    (second / "README.md").write_text("a model card")
    assert benchmark.models.digest(first) == benchmark.models.digest(second)
    path = second / "llm" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert benchmark.models.digest(first) != benchmark.models.digest(second)
    with pytest.raises(UserError, match="does not exist or is empty"):
        benchmark.models.digest(tmp_path / "c")
