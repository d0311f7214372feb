"""The public layouts of LLaVA-1.5, file for file in miniature, and what is refused (facts/models.md, section 1)."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import benchmark.models
from benchmark.core.errors import UserError
from benchmark.models import places
from benchmark.models.batch import collate
from benchmark.models.llava_original import padded_vocabulary, tensors
from benchmark.training.trainable import check_counts, trainable_table
from tests.benchmark.models import tiny
from tests.benchmark.models.test_models import item

CLIP = "clip-vit-large-patch14-336"
SHARDS = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A small llava-hf folder: the same weights as the original layouts below."""
    return tiny.write("llava", tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def reference(hf):
    return tiny.load("llava", hf)


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return LLaVA's own names, without the tower and without llava-hf's image row."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("model.vision_tower."):
            continue
        for new, old in (
            ("model.multi_modal_projector.linear_1", "model.mm_projector.0"),
            ("model.multi_modal_projector.linear_2", "model.mm_projector.2"),
            ("model.language_model.", "model."),
        ):
            name = name.replace(new, old)
        words = len(tensor) - 1
        renamed[name] = tensor[:words].clone() if "embed_tokens" in name or "lm_head" in name else tensor.clone()
    return renamed


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], kind: str, count: int = 2) -> None:
    """Write tensors as shards with their index."""
    stem, ending = SHARDS[kind]
    names = sorted(tensors)
    places = {name: f"{stem}-{i % count + 1:05}-of-{count:05}.{ending}" for i, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == file}
        torch.save(part, folder / file) if kind == "bin" else save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def write_clip(folder: Path, loaded, kind: str = "bin", dtype: torch.dtype = torch.float16) -> Path:
    """Write the tower as the hub's CLIP: both halves in one file, old names, the vision part of the config nested."""
    folder.mkdir()
    state = {
        name.replace("model.vision_tower.", "vision_model."): tensor.to(dtype)
        for name, tensor in loaded.model.state_dict().items() if "vision_tower" in name
    }
    positions = torch.arange(loaded.image_seq_length + 1)[None]
    state |= {
        "vision_model.embeddings.position_ids": positions, "logit_scale": torch.ones(()),
        "text_model.final_layer_norm.weight": torch.ones(3), "visual_projection.weight": torch.ones(2, 2),
    }
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    vision = loaded.model.config.vision_config.to_dict()
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 768, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
    size = loaded.image_processor.height
    preprocessor = tiny.PREPROCESSOR | {"crop_size": size, "do_center_crop": True, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def write_original(
    folder: Path, loaded, kind: str = "bin", tower: bool = False, dtype: torch.dtype = torch.float16, **changes
) -> Path:
    """Write a checkpoint as liuhaotian/llava-v1.5-7b is, or as LLaVA's training saves one again (tower=True)."""
    folder.mkdir(parents=True)
    tensors = {name: tensor.to(dtype) for name, tensor in original_names(loaded.model.state_dict()).items()}
    text = loaded.model.config.text_config
    for number in range(text.num_hidden_layers):
        tensors[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if tower:
        prefix = "model.vision_tower.vision_tower.vision_model."
        state = loaded.model.state_dict().items()
        tensors |= {n.replace("model.vision_tower.", prefix): t.to(dtype) for n, t in state if "vision_tower" in n}
    write_shards(folder, tensors, kind)
    config = {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu", "image_aspect_ratio": "pad", "mm_hidden_size": 16, "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2, "mm_vision_tower": f"openai/{CLIP}", "rope_scaling": None, "use_cache": True,
        "max_length": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
        "tie_word_embeddings": False, "transformers_version": "4.31.0", "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False, "use_mm_proj": True, "vocab_size": text.vocab_size - 1,
        **{name: getattr(text, name) for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "rms_norm_eps", "max_position_embeddings",
        )},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "generation_config.json").write_text("{}")
    tiny.tokenizer().save_pretrained(folder)
    torch.save({}, folder / "mm_projector.bin")  # the hub has one beside the shards: the shards' is what counts
    return folder


@pytest.fixture
def original(reference, tmp_path):
    write_clip(tmp_path / CLIP, reference)
    return write_original(tmp_path / "llava-v1.5-7b", reference)


def load(folder, **changes):
    return benchmark.models.load(replace(tiny.spec("llava", folder), **changes), torch.float32)


@pytest.mark.parametrize(("kind", "clip", "tower"), [
    ("bin", "bin", False), ("safetensors", "safetensors", False), ("safetensors", "bin", True), ("bin", "bin", True),
])
def test_the_original_layouts_are_the_same_model(reference, tmp_path, kind, clip, tower):
    write_clip(tmp_path / CLIP, reference, clip)
    loaded = load(write_original(tmp_path / "llava", reference, kind, tower))
    words = len(loaded.tokenizer)
    expected, found = reference.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        got = found[name]
        if "embed_tokens" in name or "lm_head" in name:
            assert len(got) == padded_vocabulary(words)
            mean = tensor[:words].half().float().mean(0)
            assert torch.allclose(got[words:], mean.expand(len(got) - words, -1), atol=1e-3)
            tensor, got = tensor[:words], got[:words]
        assert got.dtype == torch.float32 and torch.equal(got, tensor.half().float()), name
    assert loaded.image_token_id == words and loaded.image_seq_length == 9
    assert loaded.vocab_size == words and not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.image_processor == reference.image_processor


def test_logits_have_the_rows_of_the_vocabulary_and_are_llava_hfs(reference, original):
    reference_half = load(reference.path, vocab_size=len(reference.tokenizer))
    with torch.no_grad():
        for parameter in reference_half.model.parameters():
            parameter.copy_(parameter.half())
    loaded = load(original)
    batch = collate(loaded, [item(loaded, "a", "what colour is this animal?", "red", 1)], "right")
    batch.pop("labels")
    with torch.no_grad():
        ours, theirs = loaded.model(**batch).logits, reference_half.model(**batch).logits
    assert ours.shape[-1] == len(loaded.tokenizer)
    assert torch.allclose(ours, theirs, atol=1e-5)
    with pytest.raises(UserError, match="model.vocab_size=1000, but the output layer"):
        load(reference.path, vocab_size=1000)


@pytest.mark.parametrize("layout", ["llava-hf", "original"])
def test_the_model_is_called_with_labels_at_its_own_vocabulary(reference, original, layout):
    """The contract says so: with vocab_size set, the loss is the mean over labels of a softmax over those rows."""
    loaded = load(original) if layout == "original" else load(reference.path, vocab_size=len(reference.tokenizer))
    batch = collate(loaded, [item(loaded, "a", "what colour is this animal?", "red", 1)], "right")
    with torch.no_grad():
        output = loaded.model(**batch)
    logits, labels = output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, labels))
    ids = batch["input_ids"].clamp(max=5)
    assert loaded.model(input_ids=ids, labels=ids).loss.isfinite()


def test_the_hub_cache_is_found(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def snapshot(repository):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0123456789abcdef")
        (folder / "snapshots").mkdir()
        return folder / "snapshots" / "0123456789abcdef"

    write_clip(snapshot(f"openai/{CLIP}"), reference)
    write_original(snapshot("liuhaotian/llava-v1.5-7b"), reference)
    place = places.find("nowhere/at all", "liuhaotian/llava-v1.5-7b")
    assert place == places.find("liuhaotian/llava-v1.5-7b")
    assert place.revision == "liuhaotian/llava-v1.5-7b@0123456789ab"
    loaded = load(place.path)
    assert loaded.tower_path == places.find(f"openai/{CLIP}").path
    assert not places.find("no/such").path.exists()


def test_the_digest_covers_the_tower(original):
    loaded = load(original)
    assert loaded.digest != benchmark.models.digest(original)
    path = loaded.tower_path / "preprocessor_config.json"
    path.write_text(path.read_text() + "\n")
    assert loaded.digest != benchmark.models.digest(original, loaded.tower_path)


def without(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:2000])


def config_with(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def one_more(folder):
    name = "pytorch_model-00001-of-00002.bin"
    torch.save(torch.load(folder / name) | {"model.layers.0.lora_A": torch.ones(2)}, folder / name)


def foreign(folder):
    name = "pytorch_model-00001-of-00002.bin"
    torch.save(torch.load(folder / name) | {"base_model.x": torch.ones(2)}, folder / name)


def pickled_code(folder):
    torch.save({"x": Path("x")}, folder / "pytorch_model-00002-of-00002.bin")


WRONG = {
    "a missing shard": (without("pytorch_model-00002-of-00002.bin"), "lacks pytorch_model-00002-of-00002.bin"),
    "a cut shard": (cut("pytorch_model-00001-of-00002.bin"), "truncated or corrupt|not a plain file of tensors"),
    "code in a shard": (pickled_code, "not a plain file of tensors"),
    "no index": (without("pytorch_model.bin.index.json"), "no model.*safetensors and no pytorch_model"),
    "another projector": (config_with(mm_projector_type="linear"), "mm_projector_type='linear'; LLaVA-1.5 has"),
    "another layer": (config_with(mm_vision_select_layer=-1), "mm_vision_select_layer=-1"),
    "image start tokens": (config_with(mm_use_im_start_end=True), "mm_use_im_start_end=True"),
    "more words": (config_with(vocab_size=300), "vocab_size=300 in config.json, but .* has"),
    "more blocks": (config_with(num_hidden_layers=5), "9 tensors missing .first: model.language_model.layers.4"),
    "wider": (config_with(intermediate_size=64), "tensors of another shape"),
    "an adapter": (one_more, "1 tensors unexpected .first: model.language_model.layers.0.lora_A"),
    "foreign tensors": (foreign, "1 tensors that LLaVA-1.5 has not .first: base_model.x"),
    "no sizes": (config_with(hidden_size=None), "has no hidden_size"),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer.json or tokenizer.model"),
    "no tower": (lambda folder: shutil.rmtree(folder.parent / CLIP), "needs the vision tower 'openai/clip"),
    "neither layout": (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "needs 'llava'"),
    "a tower without vision": (
        lambda folder: torch.save({"text_model.x": torch.ones(1)}, folder.parent / CLIP / "pytorch_model.bin"),
        "has no CLIP vision weights",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_checkpoints_are_refused_by_name(original, fault, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    change, message = WRONG[fault]
    change(original)
    with pytest.raises(UserError, match=message):
        load(original)


def whole(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


STATE = {"model.norm.weight": torch.ones(3000)}
BROKEN_PICKLES = {
    **{f"{share:.0%} of a file": (whole(STATE)[: int(share * len(whole(STATE)))], "truncated or corrupt")
       for share in (0.01, 0.3, 0.9, 0.999)},
    "empty": (b"", "truncated or corrupt .it ends too early"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not a plain file"),
    "noise": (whole(STATE)[:64] + bytes(range(256)) * 2 + whole(STATE)[576:], "truncated or corrupt|not a plain file"),
    "a pickle of code": (pickle.dumps({"x": print}), "not a plain file of tensors .weights_only=True refuses it"),
    "a list": (whole([torch.ones(2)]), "not a plain file of tensors"),
    "a training state": (whole({"state_dict": STATE}), "'state_dict' is a dict"),
    "a number": (whole(STATE | {"step": 3}), "'step' is a int"),
}


@pytest.mark.parametrize("fault", BROKEN_PICKLES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_broken_pickled_file_is_one_message_with_its_name(fault, tmp_path):
    content, message = BROKEN_PICKLES[fault]
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(tensors(tmp_path))
    text = str(error.value)
    assert str(tmp_path / "pytorch_model.bin") in text and "\n" not in text and "Fetch the checkpoint again" in text


def test_a_pickled_file_of_an_old_torch_is_read(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (found,) = tensors(tmp_path)
    assert found[0] == "model.norm.weight" and torch.equal(found[1], STATE[found[0]])


def test_a_tokenizer_with_too_many_words_is_refused(hf, tmp_path):
    folder = shutil.copytree(hf, tmp_path / "hf")
    tokens = tiny.tokenizer()
    tokens.add_tokens([f"word{i}" for i in range(9)])
    tokens.save_pretrained(folder)
    with pytest.raises(UserError, match="rows for them: they do not belong together"):
        load(folder)


def test_the_table_of_what_trains_and_its_check(reference):
    from benchmark.models import trainable_names
    from tests.benchmark.cells import cell_of_tiny

    names = trainable_names(reference, "last_layers", 2)
    table = trainable_table(reference, names)
    parameters = dict(reference.model.named_parameters())
    trained = sum(parameters[name].numel() for name in names)
    total = sum(parameter.numel() for parameter in parameters.values())
    assert [line.split("  ")[0] for line in table.splitlines()] == [
        "part", "vision tower", "projector", "embedding, norm, output", "blocks 0 to 1", "blocks 2 to 3", "all",
    ]
    assert table.splitlines()[-1].split() == ["all", f"{total:,}", f"{trained:,}", str(len(names))]
    sizes = {
        "family": "llava", "hidden": 32, "intermediate": 48, "layers": 4, "heads": 2, "kv_heads": 2,
        "vocab": len(reference.tokenizer) + 1,
        "tower": {"hidden": 16, "intermediate": 32, "layers": 3, "heads": 2, "image": 24, "patch": 8},
    }
    check_counts(reference, names, cell_of_tiny(architecture=sizes))
    with pytest.raises(UserError, match=f"has {total:,} parameters, of which {trained:,} would train"):
        check_counts(reference, names, cell_of_tiny(architecture=sizes | {"intermediate": 49}))
    with pytest.raises(UserError, match="would train"):
        check_counts(reference, names[:-1], cell_of_tiny(architecture=sizes))
