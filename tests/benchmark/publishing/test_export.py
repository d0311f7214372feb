"""Cells as standard checkpoints: what plain transformers loads gives the cell's own logits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from benchmark.cli import main
from benchmark.core.errors import UserError
from benchmark.merging import origins
from benchmark.models import trainable_names
from benchmark.models.batch import Item, collate
from benchmark.models.loading import how_to_load, load_model
from benchmark.models.prompt import render
from benchmark.models.vila import VilaForConditionalGeneration
from benchmark.publishing.export import export
from benchmark.spec import MethodSpec, plain
from benchmark.store.cells import Store
from benchmark.training.adapters import Adapter, adapted_layers
from benchmark.training.checkpoint import save_delta, snapshot
from benchmark.training.generate import answer_batch
from methods import houlsby, prompt_tuning
from methods.registry import build
from tests.benchmark.cells import cell_of_tiny
from tests.benchmark.models import tiny
from tests.benchmark.models.test_layouts import CLIP, write_clip, write_original
from tests.benchmark.models.test_models import item


def finished(root, cell):
    """Write a cell with a random delta; return its store, name and the tuned model."""
    store = Store(root / "results")
    loaded = load_model(cell.model, cell.dtype, "cpu")
    names = trainable_names(loaded, "last_layers", 2)
    base = snapshot(loaded.model, names)
    with torch.no_grad():
        for name in names:
            loaded.model.get_parameter(name).add_(torch.randn_like(base[name]) * 0.1)
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    save_delta(folder / "delta.safetensors", loaded.model, base, names, loaded.digest)
    (folder / "cell.yaml").write_text(yaml.safe_dump(plain(cell)))
    (folder / "scores.json").write_text(json.dumps({"datasets": {}, "averages": {}}))
    return store, folder.name, loaded


def batch_of(loaded):
    batch = collate(loaded, [item(loaded, "a", "what colour is this animal?", "red", 1)], "right")
    batch.pop("labels")
    return batch


def test_an_adapter_that_cannot_be_merged_is_exported_alone_and_loads_on_a_plain_model(tmp_path):
    tiny.write("llava", tmp_path / "base")
    cell = cell_of_tiny(checkpoint=str(tmp_path / "base"), vocab_size=len(tiny.tokenizer()))
    cell = replace(cell, method=MethodSpec("houlsby", {"size": 4}))
    store, name, batch, ours = stored_adapter(tmp_path, cell)
    assert main(["export", name, str(tmp_path / "out"), f"results={store.root}"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "README.md"
    }
    about = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert about["method"] == "houlsby" and about["size"] == 4
    assert "methods.houlsby.load(base_model, folder)" in (tmp_path / "out" / "README.md").read_text()
    model = houlsby.load(LlavaForConditionalGeneration.from_pretrained(tmp_path / "base"), tmp_path / "out")
    with torch.no_grad():
        theirs = model(**batch).logits[..., : ours.shape[-1]]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def stored_adapter(root, cell, scope="last_layers", layers=2):
    """Write a cell with random values of an adapter that stays, and of the projector; return (store, name, logits)."""
    loaded, store = load_model(cell.model, cell.dtype, "cpu"), Store(root / "results")
    method = build(cell.method.id, dict(cell.method.params), 0)
    names = trainable_names(loaded, scope, layers)
    adapter = Adapter(loaded, [(method, adapted_layers(loaded, names, method))], names)
    tensors = {name: loaded.model.get_parameter(name) for name in adapter.trained}
    base = adapter.base({name: tensor.detach().clone() for name, tensor in tensors.items()})
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.1 * torch.randn_like(tensor))
        ours = loaded.model(**batch_of(loaded)).logits
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    save_delta(folder / "delta.safetensors", tensors, base, list(tensors), loaded.digest)
    (folder / "cell.yaml").write_text(yaml.safe_dump(plain(cell)))
    batch = batch_of(loaded)
    adapter.remove()
    return store, folder.name, batch, ours


def tiny_cell(root, family, method, **params):
    """Write a tiny model; return a cell of a method on it."""
    tiny.write(family, root / "base")
    more = {"vocab_size": len(tiny.tokenizer())} if family == "llava" else {"preprocess": "resize"}
    return replace(cell_of_tiny(family, checkpoint=str(root / "base"), **more), method=MethodSpec(method, params))


@pytest.mark.parametrize(("family", "method", "kind"), [
    ("llava", "prompt_tuning", "PROMPT_TUNING"), ("llava", "prefix", "PREFIX_TUNING"),
    ("vila", "prefix", "PREFIX_TUNING"),
])
def test_a_prompt_and_a_prefix_load_as_plain_peft_models(family, method, kind, tmp_path):
    from peft import PeftModel

    cell = tiny_cell(tmp_path, family, method, tokens=3)
    store, name, batch, ours = stored_adapter(tmp_path, cell, "all")
    out = export(store, name, tmp_path / "out")
    about = json.loads((out / "adapter_config.json").read_text())
    assert about["peft_type"] == kind and about["num_virtual_tokens"] == 3
    assert "PeftModel.from_pretrained(base_model, folder)" in (out / "README.md").read_text()
    base = load_model(cell.model, cell.dtype, "cpu").model
    if family == "llava":
        base = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        plain_logits = base(**batch).logits[..., : ours.shape[-1]]
        model = PeftModel.from_pretrained(base, out)
        theirs = model(**batch).logits[:, -ours.shape[1] :, : ours.shape[-1]]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (plain_logits - ours).abs().max() > 1e-3
    stored = load_file(out / "adapter_model.safetensors")
    projector = {"llava": "model.multi_modal_projector", "vila": "mm_projector"}[family]
    for part, value in model.base_model.get_submodule(projector).modules_to_save["default"].named_parameters():
        assert torch.equal(value, stored[f"base_model.{projector}.{part}"])


def test_a_prompt_for_vila_loads_on_a_plain_model(tmp_path):
    cell = tiny_cell(tmp_path, "vila", "prompt_tuning", tokens=3)
    store, name, batch, ours = stored_adapter(tmp_path, cell)
    out = export(store, name, tmp_path / "out")
    assert "peft_type" not in json.loads((out / "adapter_config.json").read_text())
    assert "methods.prompt_tuning.load(base_model, folder)" in (out / "README.md").read_text()
    model = load_model(cell.model, cell.dtype, "cpu").model
    with torch.no_grad():
        plain_logits = model(**batch).logits
        theirs = prompt_tuning.load(model, out)(**batch).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (plain_logits - ours).abs().max() > 1e-3
    other = load_model(tiny_cell(tmp_path / "other", "llava", "full_ft").model, cell.dtype, "cpu").model
    with pytest.raises(ValueError, match="no adapter for this model"):
        prompt_tuning.load(other, out)


def test_a_prefix_in_some_blocks_keeps_our_folder(tmp_path):
    tiny.write("llava", tmp_path / "base")
    cell = cell_of_tiny(checkpoint=str(tmp_path / "base"), vocab_size=len(tiny.tokenizer()))
    store, name, *_ = stored_adapter(tmp_path, replace(cell, method=MethodSpec("prefix", {"tokens": 3})), layers=1)
    out = export(store, name, tmp_path / "out")
    assert "peft_type" not in json.loads((out / "adapter_config.json").read_text())
    assert "methods.prefix.load(base_model, folder)" in (out / "README.md").read_text()


def test_llava_loads_in_plain_transformers(tmp_path):
    tiny.write("llava", tmp_path / "base")
    words = len(tiny.tokenizer())
    cell = cell_of_tiny(checkpoint=str(tmp_path / "base"), vocab_size=words)
    store, name, loaded = finished(tmp_path, cell)
    assert main(["export", name[:12], str(tmp_path / "out"), f"results={store.root}"]) == 0
    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs, ours = model(**batch_of(loaded)).logits, loaded.model(**batch_of(loaded)).logits
    assert theirs.shape[-1] == words + 1 and ours.shape[-1] == words  # all rows are stored
    torch.testing.assert_close(theirs[..., :words], ours, rtol=0, atol=1e-6)
    picture = Image.effect_noise((37, 23), 80).convert("RGB")
    processor = LlavaImageProcessorPil.from_pretrained(tmp_path / "out")
    pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(loaded.image_processor(picture), pixels, rtol=0, atol=5e-7)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("red").input_ids
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"cell `{name}`, seed 0" in card and "AutoModelForImageTextToText.from_pretrained" in card
    train = cell.train
    assert origins.origin_of(tmp_path / "out") == {
        "base": loaded.digest, "scope": train.scope, "last_layers": train.last_layers, "projector": train.projector,
    }


def test_the_original_layout_becomes_llava_hfs(tmp_path):
    reference = tiny.load("llava", tiny.write("llava", tmp_path / "hf"))
    write_clip(tmp_path / CLIP, reference)
    write_original(tmp_path / "original", reference)
    store, name, loaded = finished(tmp_path, cell_of_tiny(checkpoint=str(tmp_path / "original")))
    model = LlavaForConditionalGeneration.from_pretrained(export(store, name, tmp_path / "out"))
    with torch.no_grad():
        theirs, ours = model(**batch_of(loaded)).logits, loaded.model(**batch_of(loaded)).logits
    torch.testing.assert_close(theirs[..., : ours.shape[-1]], ours, rtol=0, atol=1e-6)
    assert (theirs[..., ours.shape[-1] :] < theirs.max(-1, keepdim=True).values).all()  # never the answer


@pytest.mark.slow
def test_vila_keeps_the_public_layout(tmp_path):
    tiny.write("vila", tmp_path / "base")
    cell = replace(cell_of_tiny("vila", checkpoint=str(tmp_path / "base"), preprocess="resize"), dtype="bfloat16")
    store, name, loaded = finished(tmp_path, cell)
    out = export(store, name, tmp_path / "out")
    model = VilaForConditionalGeneration.from_pretrained(out, dtype=torch.bfloat16)
    batch = batch_of(loaded)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded.model(**batch).logits)
    base, ours = ((folder / "config.json").read_text() for folder in (tmp_path / "base", out))
    assert base != ours and base.replace("float32", "bfloat16") == ours
    assert all(name.startswith("vision_model.") for name in load_file(out / "vision_tower" / "model.safetensors"))
    assert LlamaForCausalLM.from_pretrained(out / "llm").dtype == torch.bfloat16
    assert isinstance(SiglipVisionModel.from_pretrained(out / "vision_tower"), SiglipVisionModel)
    assert (out / "vision_tower" / "preprocessor_config.json").is_file() and (out / "llm" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["llava-hf", "original"])
def test_a_llava_answers_like_the_cell_in_plain_transformers(tmp_path, layout):
    """AutoProcessor and AutoModelForImageTextToText, given the prompt as text: tokens, pixels and answers are equal."""
    tiny.write("llava", tmp_path / "hf")
    reference, words = tiny.load("llava", tmp_path / "hf"), len(tiny.tokenizer())
    if layout == "llava-hf":
        cell = cell_of_tiny(checkpoint=str(tmp_path / "hf"), vocab_size=words)
    else:
        write_clip(tmp_path / CLIP, reference)
        write_original(tmp_path / "original", reference)
        cell = cell_of_tiny(checkpoint=str(tmp_path / "original"))
    store, name, loaded = finished(tmp_path, cell)
    out = export(store, name, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(out, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(out)
    texts = ["what colour is this animal?", "is  this   a cat \t?", "A or B", "a\nb", "0123 </>"]
    for number, text in enumerate(texts):
        picture = tiny.picture(37, 23, seed=number)
        ids, _ = loaded.encode(
            loaded.tokenizer, text, None, True, loaded.image_token_id, loaded.image_seq_length, loaded.max_length
        )
        theirs = processor(images=picture, text=render(text, None, True), return_tensors="pt")
        assert theirs["input_ids"][0].tolist() == ids
        torch.testing.assert_close(theirs["pixel_values"][0], loaded.image_processor(picture), rtol=0, atol=5e-7)
        pixels = loaded.image_processor.to_uint8(picture)
        [(answer, _)] = answer_batch(loaded, [Item("a", ids, [-100] * len(ids), pixels)], 8)
        made = model.generate(**theirs, max_new_tokens=8, do_sample=False)[0, len(ids) :]
        assert processor.decode(made, skip_special_tokens=True).strip() == answer
    assert AutoProcessor.from_pretrained(out)(images=picture, text="<image>", return_tensors="pt")  # default backend


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "vila"])
@pytest.mark.parametrize("tuned", [True, False])
def test_answers_in_another_dtype_than_the_training(tmp_path, family, tuned):
    """Weights of a tuned model pass through the dtype it was saved in; tables of positions stay in float32."""
    tiny.write(family, tmp_path / "base")
    cell = cell_of_tiny(family, checkpoint=str(tmp_path / "base"), preprocess="resize")
    cell = replace(cell, dtype="bfloat16", eval=replace(cell.eval, dtype="float16"))
    cell = cell if tuned else replace(cell, train=None)
    model = load_model(*how_to_load(cell, answering=True)).model
    plain = load_model(cell.model, "float32", "cpu").model.state_dict()
    for name, tensor in model.state_dict().items():
        stored = plain[name].bfloat16() if tuned else plain[name]
        assert not tensor.is_floating_point() or torch.equal(tensor, stored.half()), name
    assert model.dtype == torch.float16
    tables = [buffer for name, buffer in model.named_buffers() if "inv_freq" in name]
    assert tables and all(table.dtype == torch.float32 for table in tables)
    assert {p.dtype for p in load_model(*how_to_load(cell, answering=False)).model.parameters()} == {torch.bfloat16}


def test_what_cannot_be_exported(tmp_path):
    tiny.write("llava", tmp_path / "base")
    store, name, _ = finished(tmp_path, cell_of_tiny(checkpoint=str(tmp_path / "base")))
    with pytest.raises(UserError, match="No cell 'x' in"):
        export(store, "x", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        export(store, name, tmp_path / "full")
    with pytest.raises(UserError, match="Cannot write"):
        export(store, name, tmp_path / "full" / "file" / "out")
    delta = store.cells / name / "delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated or corrupt"):
        export(store, name, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
