"""VILA1.5-3B's public folder, file for file in miniature, and tokenizer.model (facts/models.md, section 2.2)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.core.errors import UserError
from tests.benchmark.models import tiny
from tests.benchmark.models.test_layouts import write_shards

ROOT_CONFIG = {
    "architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "drop_path_rate": 0.0, "hidden_size": 32,
    "image_aspect_ratio": "resize", "interpolate_mode": "linear", "mm_hidden_size": 16, "mm_projector_lr": None,
    "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "cls_patch",
    "mm_vision_select_layer": -2, "model_dtype": "torch.bfloat16", "num_video_frames": 8, "resume_path": "./vlm",
    "s2": False, "s2_max_split_size": 336, "s2_scales": "336,672,1008", "transformers_version": "4.36.2",
    "tune_language_model": True, "tune_mm_projector": True, "tune_vision_tower": True, "vision_resolution": -1,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny.load("vila", tiny.write("vila", tmp_path_factory.mktemp("vila")))


def write_public(folder: Path, loaded) -> Path:
    """Write the public layout: sharded bfloat16, names of transformers 4.36, the three configurations nested."""
    shutil.copytree(loaded.path, folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    state = {name: tensor.bfloat16() for name, tensor in loaded.model.state_dict().items()}
    part = {
        prefix: {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in ("llm", "vision_tower", "mm_projector")
    }
    write_shards(folder / "llm", part["llm"], "safetensors")
    tower = {f"vision_model.{name}": tensor for name, tensor in part["vision_tower"].items()}
    save_file(tower, folder / "vision_tower" / "model.safetensors", metadata={"format": "pt"})
    save_file(part["mm_projector"], folder / "mm_projector" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = loaded.model.config.text_config
    old = {name: getattr(text, name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "rms_norm_eps", "max_position_embeddings", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id",
    )}
    llm = old | {
        "_name_or_path": "./llm", "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000.0,
        "rope_scaling": None, "torch_dtype": "bfloat16", "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right", "model_max_length": 4096, "tie_word_embeddings": False,
    }
    nested = {"llm_cfg": llm, "vision_tower_cfg": config["vision_tower_cfg"] | {"torch_dtype": "bfloat16"}}
    projector = {"architectures": ["MultimodalProjector"], "mm_projector_type": "mlp_downsample"}
    nested["mm_projector_cfg"] = projector | {"model_type": "v2l_projector", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(ROOT_CONFIG | nested))
    (folder / "llm" / "config.json").write_text(json.dumps(llm))
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_the_public_layout_loads_exactly(reference, tmp_path):
    folder = write_public(tmp_path / "VILA1.5-3b", reference)
    assert len(list((folder / "llm").glob("model-0000*-of-00002.safetensors"))) == 2
    loaded = tiny.load("vila", folder)
    expected, found = reference.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in expected.items())
    assert loaded.block_prefixes == reference.block_prefixes and loaded.image_seq_length == 9
    digest = loaded.digest
    (folder / "trainer_state.json").write_text('{"epoch": 1}')
    assert tiny.load("vila", folder).digest == digest


def drop(name):
    return lambda folder: next(iter(sorted(folder.glob(name)))).unlink()


def without_tensor(folder):
    path = folder / "vision_tower" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("vision_model.head.probe")
    save_file(tensors, path, metadata={"format": "pt"})


WRONG = {
    "a missing shard": (drop("llm/model-00002*"), "lacks model-00002-of-00002.safetensors"),
    "no tower": (drop("vision_tower/model.safetensors"), "vision_tower has no weights"),
    "no projector": (drop("mm_projector/model.safetensors"), "mm_projector has no weights"),
    "a tower without its head": (without_tensor, "1 tensors missing .first: .*head.probe"),
    "no preprocessor": (drop("vision_tower/preprocessor_config.json"), "preprocessor_config.json is missing"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_folders_are_refused_by_name(reference, tmp_path, fault):
    folder = write_public(tmp_path / "vila", reference)
    change, message = WRONG[fault]
    change(folder)
    with pytest.raises(UserError, match=message):
        tiny.load("vila", folder)


def test_tokenizer_model_is_read_as_sentencepiece_reads_it(tmp_path):
    """Llama's kind: byte-pair encoding with byte fallback, ids <unk> 0, <s> 1, </s> 2, and no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from benchmark.models.folder import load_tokenizer
    from benchmark.models.prompt import SYSTEM, encode

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*tiny.CORPUS * 5, "What is the colour of the animal? A red cat and a blue dog."]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "legacy": False, "model_max_length": 4096, "padding_side": "right", "tokenizer_class": "LlamaTokenizer",
    }))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path, theirs.get_piece_size())
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id == 0
    question, answer = "what colour is the ≠ animal ?", "a red cat"
    ids, labels = encode(tokenizer, question, answer, True, -200, 3, 4096)
    before, after = f"{SYSTEM} USER: ", f"\n{question} ASSISTANT: {answer}"
    assert ids == [1, *theirs.encode(before), -200, -200, -200, *theirs.encode(after), 2]
    assert labels[-len(theirs.encode(answer)) - 1 :] == [*theirs.encode(answer), 2]
    with pytest.raises(UserError, match="rows for them"):
        load_tokenizer(tmp_path, theirs.get_piece_size() - 1)
