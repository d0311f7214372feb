"""Merges on files: the numbers of the post-hoc cells, memory, interrupted writes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration

from benchmark import data
from benchmark.cli import main
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.core.files import sha256_file
from benchmark.data.record import Record
from benchmark.merging import CALIBRATED, MERGES, POSTHOC, SEVERAL, origins
from benchmark.merging import merge as merging
from benchmark.merging.merge import merge
from benchmark.models import trainable_names
from benchmark.models.digest_cache import checkpoint_digest
from benchmark.models.loading import load_model
from benchmark.publishing.export import export
from benchmark.spec import at_root, plain
from benchmark.store.cells import Store
from benchmark.training.checkpoint import save_delta, snapshot
from benchmark.training.generate import answer_batch
from benchmark.training.posthoc import transform
from methods.posthoc import SeedMerge
from methods.registry import METHODS, build
from tests.benchmark.cells import cell_of_tiny
from tests.benchmark.merging import checkpoints
from tests.benchmark.models import tiny
from tests.benchmark.models.test_models import item


def pair(root: Path, shards: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """Write a base and a tuned checkpoint of four tensors, one of which is equal and one no float."""
    torch.manual_seed(3)
    base = {f"layer.{i}.weight": torch.randn(7, 5).to(dtype) for i in range(3)} | {"ids": torch.arange(9)}
    tuned = {name: tensor + torch.randn(7, 5).to(dtype) if name[-3:] == "ght" else tensor.clone()
             for name, tensor in base.items()}
    tuned["layer.1.weight"] = base["layer.1.weight"].clone()
    return checkpoints.write(root / "base", base, shards), checkpoints.write(root / "tuned", tuned, shards)


@pytest.mark.parametrize("method", POSTHOC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensor_by_tensor_gives_what_the_method_gives_for_all_tensors(method, dtype, tmp_path):
    base, tuned = pair(tmp_path, 3, dtype)
    merge(method, base, [tuned], tmp_path / "out", {}, seed=4)
    before, after = checkpoints.read(base), checkpoints.read(tuned)
    floats = [name for name in before if name != "ids"]
    expected = build(method, {}, 4).finish({n: after[n] for n in floats}, {n: before[n] for n in floats}, None)
    result = checkpoints.read(tmp_path / "out")
    assert result.keys() == before.keys() and torch.equal(result["ids"], before["ids"])
    for name in floats:
        assert result[name].dtype == dtype and torch.equal(result[name], expected[name].to(dtype)), name
    assert torch.equal(result["layer.1.weight"], before["layer.1.weight"])


def export_both(root, loaded, cells, tuned, base, records):
    """Export a Full FT cell with these weights and the post-hoc cell made from it, below root under their names."""
    store = Store(root / "results")
    for one in cells.values():
        place = store.folder(one)
        place.mkdir(parents=True)
        (place / "cell.yaml").write_text(yaml.safe_dump(plain(one)))
    deltas = {name: store.folder(one) / "delta.safetensors" for name, one in cells.items()}
    save_delta(deltas["full_ft"], tuned, base, list(base), loaded.digest)
    (method,) = cells.keys() - {"full_ft"}
    cell = cells[method]
    built = build(method, dict(cell.method.params), cell.seed)
    transform(cell, loaded, records, built, base, [deltas["full_ft"]], deltas[method])
    for name, one in cells.items():
        export(store, store.folder(one).name, root / name)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "vila"])
@pytest.mark.parametrize("method", ["dare", "wise_ft", "dare_magnitude", "lines", "intruder"])
def test_a_merge_of_an_exported_cell_is_the_exported_post_hoc_cell(family, method, tmp_path):
    """Base folder and exported Full FT cell give the bits of the post-hoc cell, also the random ones of DARE."""
    folder = tiny.write(family, tmp_path / "base")
    cell = cell_of_tiny(family, checkpoint=str(folder), preprocess="resize")
    loaded = load_model(cell.model, cell.dtype, "cpu")
    base = snapshot(loaded.model, trainable_names(loaded, "last_layers", 2))
    torch.manual_seed(1)
    tuned = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
    cells = {name: replace(cell, method=replace(cell.method, id=name), seed=2) for name in ("full_ft", method)}
    export_both(tmp_path, loaded, cells, tuned, base, [])
    assert main(["merge", method, str(folder), str(tmp_path / "full_ft"), str(tmp_path / "out"), "seed=2"]) == 0
    merged = load_model(replace(cell.model, checkpoint=str(tmp_path / "out")), cell.dtype, "cpu").model.state_dict()
    expected = load_model(replace(cell.model, checkpoint=str(tmp_path / method)), cell.dtype, "cpu").model.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    assert any(not torch.equal(merged[name], tensor) for name, tensor in base.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tailor", "wise_ft_tensors"])
def test_a_merge_that_measures_on_data_is_the_exported_post_hoc_cell(method, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    records = []
    for i in range(6):
        tiny.picture(30 + i, 24).save(tmp_path / "images" / f"{i}.png")
        image = tmp_path / "images" / f"{i}.png"
        records.append(Record(f"{i}", "coco", "train", image, "describe this.", f"a {i} dog", ("a dog",), None, "", {}))
    monkeypatch.setattr(data, "load", lambda dataset, root, split, limit: records[:limit])
    for name in ("coco", "generic"):
        (tmp_path / "data" / name).mkdir(parents=True)
    asked = ["model=vila_pocket", "dataset=coco", f"data_root={tmp_path / 'data'}", "method.samples=4", "seed=2"]
    if method == "wise_ft_tensors":
        asked.append("method.steps=2")
    (cell,) = request([f"method={method}", *asked]).cells
    loaded = load_model(cell.model, cell.dtype, "cpu")
    names = trainable_names(loaded, cell.train.scope, cell.train.last_layers)
    base = snapshot(loaded.model, names)
    torch.manual_seed(1)
    tuned = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in base.items()}
    cells = {"full_ft": replace(cell, method=replace(cell.method, id="full_ft", params={})), method: cell}
    export_both(tmp_path, loaded, cells, tuned, base, records)
    given = [item for item in asked if item.partition("=")[0] != "seed"]
    folders = [str(at_root(cell.model.checkpoint)), str(tmp_path / "full_ft"), str(tmp_path / "out")]
    assert main(["merge", method, *folders, *given, "seed=2"]) == 0
    merged, expected, full_ft = (
        load_model(replace(cell.model, checkpoint=str(tmp_path / name)), cell.dtype, "cpu").model.state_dict()
        for name in ("out", method, "full_ft")
    )
    rounded = {name: tensor.half().float() for name, tensor in expected.items()}  # as the base is stored
    assert merged.keys() == rounded.keys()
    assert [name for name, tensor in merged.items() if not torch.equal(tensor, rounded[name])] == []
    assert any(not torch.equal(tensor, full_ft[name].half().float()) for name, tensor in merged.items())


def test_three_shards_load_in_transformers(tmp_path, capsys):
    base, tuned = checkpoints.llama(tmp_path / "base", 0), checkpoints.llama(tmp_path / "tuned", 1)
    (base / "training_args.bin").write_bytes(b"pickled")
    (base / "LICENSE").write_text("free")
    (base / "checkpoint-3").mkdir()
    (base / "checkpoint-3" / "config.json").write_text("{}")
    (base / "README.md").write_text("the base's own card")
    (tuned / "tokenizer_config.json").write_text("{}")
    assert len(list(base.glob("*.safetensors"))) >= 3
    out = tmp_path / "out"
    assert main(["merge", "wise_ft", str(base), str(tuned), str(out), "method.alpha=0.25"]) == 0
    printed = capsys.readouterr().out
    assert f"Written: {out}" in printed and "note: tokenizer_config.json in" in printed
    model, info = LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    one, two = LlamaForCausalLM.from_pretrained(base), LlamaForCausalLM.from_pretrained(tuned)
    for name, tensor in model.state_dict().items():
        before, after = one.state_dict()[name].float(), two.state_dict()[name].float()
        assert torch.equal(tensor, torch.lerp(before, after, 0.25).bfloat16()), name
    assert AutoTokenizer.from_pretrained(out)("red").input_ids == AutoTokenizer.from_pretrained(base)("red").input_ids
    left_out = {"training_args.bin", "checkpoint-3"}
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()} - left_out
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as old, safe_open(out / path.name, "pt") as new:
            assert old.metadata() == new.metadata() and old.offset_keys() == new.offset_keys()


def test_the_card_records_what_the_merge_needs(tmp_path):
    base, tuned = pair(tmp_path)
    merge("dare", base, [tuned], tmp_path / "out", {"keep": 0.3}, seed=9)
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["base", "tuned"] and front["base_model_relation"] == "merge"
    assert front["spiderbench_merge"] == {
        "method": "dare", "seed": 9,
        "parameters": {"keep": 0.3, "choose": "random", "rescale": True, "count": "released"},
        "base": {"name": "base", "sha256": checkpoint_digest([base])},
        "tuned": [{"name": "tuned", "sha256": checkpoint_digest([tuned])}],
    }
    assert "2 of 4 tensors changed" in card and checkpoint_digest([tuned]) in card and str(tmp_path) not in card


def test_two_merges_give_the_same_bytes_and_another_seed_does_not(tmp_path):
    base, tuned = pair(tmp_path)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        merge("dare", base, [tuned], tmp_path / out, {}, seed)
    sums = {out: {path.name: sha256_file(path) for path in (tmp_path / out).iterdir()} for out in "abc"}
    assert sums["a"] == sums["b"] and sums["a"]["model.safetensors"] != sums["c"]["model.safetensors"]


def test_names_of_an_older_transformers_fit_those_of_a_newer_one(tmp_path):
    """A LLaVA that was saved with the model's names merges with one that has the released names."""
    base = tiny.write("llava", tmp_path / "base")
    model = LlavaForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(0)
    state = {name: tensor + torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    newer = tmp_path / "newer"
    newer.mkdir()
    save_file(state, newer / "model.safetensors", metadata={"format": "pt"})
    (newer / "config.json").write_text((base / "config.json").read_text())
    assert state.keys() != checkpoints.read(base).keys()
    merge("wise_ft", base, [newer], tmp_path / "out", {"alpha": 1.0})
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merged.items())


def grown(work: Callable[[], object]) -> float:
    """Return by how many MB the resident memory of this process grows at most while something runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now

    def status(key: str) -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    before = status("VmRSS")
    kept = work()
    peak = status("VmHWM")
    del kept
    return peak - before


@pytest.mark.slow
def test_memory_is_that_of_a_few_tensors(tmp_path):
    """Three checkpoints of 40 tensors of 2 MB in three shards; reading one whole checkpoint shows in this measure."""
    folders = []
    for number, name in enumerate(["base", "one", "two"]):
        torch.manual_seed(number)
        tensors = {f"{i}.weight": torch.randn(512, 1024) for i in range(40)}
        folders.append(checkpoints.write(tmp_path / name, tensors, 3))
    del tensors
    merge("wise_ft", folders[0], folders[1:2], tmp_path / "first")  # imports
    assert grown(lambda: {name: tensor + 0 for name, tensor in checkpoints.read(folders[1]).items()}) > 75
    for method, tuned in (("dare", folders[1:2]), ("wise_ft", folders[1:2]), ("ties", folders[1:])):
        peak = grown(partial(merge, method, folders[0], tuned, tmp_path / method))
        print(f"{method}: {peak:.1f} MB of {80 * (len(tuned) + 2)} MB read and written")
        assert peak < 60, method  # of 240 MB and 320 MB that are read and written


def test_an_interrupted_merge_leaves_nothing(tmp_path, monkeypatch):
    base, tuned = pair(tmp_path, 3)
    calls = []

    def told(stage, done, total):
        calls.append(done)
        if stage == "merge" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge("dare", base, [tuned], tmp_path / "out", told=told)
    assert len(calls) == 3 and {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}
    left = tmp_path / ".out.unfinished"  # of a merge that was killed
    left.mkdir()
    (left / "stray").touch()
    merge("dare", base, [tuned], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned", "out"}
    assert not (tmp_path / "out" / "stray").exists()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    base, tuned = pair(tmp_path)
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match="GB free; the checkpoint takes"):
        merge("dare", base, [tuned], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


def test_a_merged_checkpoint_is_a_row_of_a_table(tmp_path):
    """checkpoints=mine:OUT makes a cell with the merge's digest, and its model answers."""
    base, tuned = tiny.write("llava", tmp_path / "base"), tiny.write("llava", tmp_path / "tuned")
    state = {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in checkpoints.read(tuned).items()}
    save_file(state, tuned / "model.safetensors", metadata={"format": "pt"})
    out = merge("wise_ft", base, [tuned], tmp_path / "out")
    asked = request(["table=table5", "models=llava_pocket", "methods=full_ft", f"checkpoints=mine:{out}"])
    (cell,) = [cell for cell in asked.cells if cell.method.id == "checkpoint.mine"]
    assert cell.model.checkpoint == str(out) and cell.train is None
    loaded = load_model(replace(cell.model, vocab_size=None), cell.dtype, "cpu")
    assert loaded.digest == checkpoint_digest([out])
    [(answer, _)] = answer_batch(loaded, [item(loaded, "a", "what colour is this animal?", "red", 1)], 4)
    assert isinstance(answer, str)


def test_what_differs_is_named_in_one_message(tmp_path):
    base, tuned = pair(tmp_path)
    tensors = checkpoints.read(tuned)
    tensors["layer.0.weight"] = torch.zeros(8, 5)
    tensors["extra.weight"] = tensors.pop("layer.2.weight")
    other = checkpoints.write(tmp_path / "other", tensors)
    with pytest.raises(UserError) as caught:
        merge("dare", base, [other], tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("3 tensors cannot be merged: layer.2.weight is only in ")
    assert f"extra.weight is only in {other}" in message
    assert f"layer.0.weight is [7, 5] in {base} and [8, 5] in {other}" in message
    assert not (tmp_path / "out").exists()


def test_values_that_cannot_be_merged(tmp_path):
    base, tuned = pair(tmp_path)
    tensors = checkpoints.read(tuned)
    ids = checkpoints.write(tmp_path / "ids", {**tensors, "ids": torch.arange(9) + 1})
    with pytest.raises(UserError, match="ids is stored as I64 and differs"):
        merge("dare", base, [ids], tmp_path / "out")
    tensors["layer.0.weight"][0, 0] = torch.inf
    infinite = checkpoints.write(tmp_path / "infinite", tensors)
    with pytest.raises(UserError, match="layer.0.weight would hold numbers that are not finite in F32"):
        merge("wise_ft", base, [infinite], tmp_path / "out")
    same = checkpoints.write(tmp_path / "same", checkpoints.read(base))
    with pytest.raises(UserError, match="hold the same weights: nothing to merge"):
        merge("dare", base, [same], tmp_path / "out")
    large = {name: tensor * 1e6 if name != "ids" else tensor for name, tensor in checkpoints.read(tuned).items()}
    half = checkpoints.write(tmp_path / "half", {
        name: tensor.half() if name != "ids" else tensor for name, tensor in checkpoints.read(base).items()
    })
    wide = checkpoints.write(tmp_path / "wide", large)
    with pytest.raises(UserError, match="not finite in F16"):
        merge("wise_ft", half, [wide], tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dare", "base", "tuned"], "merge needs a method and three folders or more"),
        (["dar", "base", "tuned", "out"], "Unknown merge 'dar'. Did you mean 'dare'?"),
        (["spider", "base", "tuned", "out"], "spider acts during training"),
        (["tailor", "base", "tuned", "out"], "tailor measures on the model and its training data. Add models=NAME"),
        (["dare", "base", "tuned", "out", "method.kep=0.1"], "no parameter 'kep'. Did you mean 'keep'?"),
        (["dare", "base", "tuned", "out", "method.keep=0"], "keep=0.0 must be above 0"),
        (["dare", "base", "tuned", "out", "method.keep=0.1,0.2"], "a merge takes one value"),
        (["dare", "base", "tuned", "out", "method.keep=[0.1]"], "a merge takes one value"),
        (["dare", "base", "tuned", "out", "seed=x"], "a seed is a whole number"),
        (["dare", "base", "tuned", "out", "train.epochs=2"], "merge does not read train.epochs="),
        (["ties", "base", "tuned", "other", "out", "method.variant=x"], "variant='x' is unknown"),
        (["lora", "base", "tuned", "out", "method.scale=2"], "lora has no parameter 'scale'. It has none."),
        (["ties", "base", "tuned", "out"], "with one it would only keep the largest changes"),
        (["dare", "base", "tuned", "other", "out"], "dare takes one tuned model, got 2. To merge several, use soup"),
        (["soup", "base", "tuned", "out"], "soup averages several tuned models, got one. Use wise_ft"),
        (["soup", "base", "tuned", "other", "out", "method.members=2"], "soup has no parameter 'members'"),
        (["soup", "base", "scope_a", "scope_b", "out"], "cells of different scopes: train.scope is all and attention"),
        (["ties", "base", "scope_a", "base_b", "out"], "cells of different bases: base checkpoint is 000000000000 and"),
        (["fisher", "base", "tuned", "out"], "fisher measures on the model and its training data. Add models=NAME"),
        (["tailor", "base", "tuned", "out", "models=vila_pocket,llava_pocket", "dataset=coco"], "got 2 combinations"),
        (["dare", "base", "tuned", "out", "models=vila_pocket"], "merge dare works on files alone"),
        (["dare", "base", "nowhere", "out"], "nowhere is not a folder"),
        (["dare", "base", "base", "out"], "is given twice"),
        (["dare", "base", "tuned", "other"], "other exists. Give a new folder."),
        (["dare", "base", "tuned", "base/out"], "lies in"),
        (["dare", "base", "pickled", "out"], "pickled files can run code"),
        (["dare", "base", "empty", "out"], "has no weights"),
        (["dare", "base", "architecture", "out"], "are different architectures: model_type is odd and llama"),
        (["dare", "base", "quantised", "out"], "holds quantised weights (gptq)"),
        (["dare", "base", "adapter", "out"], "is an adapter, not a whole model. Merge it first: merge lora BASE"),
        (["dare", "base", "truncated", "out"], "is truncated or corrupt"),
        (["dare", "base", "shard", "out"], "lacks model-00002-of-00003.safetensors, which"),
        (["dare", "base", "configless", "out"], "config.json is missing"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, tuned = pair(tmp_path)
    tensors = checkpoints.read(tuned)
    checkpoints.write(tmp_path / "other", tensors)
    checkpoints.write(tmp_path / "architecture", tensors, model_type="llama")
    checkpoints.write(tmp_path / "quantised", tensors, quantization_config={"quant_method": "gptq"})
    checkpoints.write(tmp_path / "truncated", tensors)
    checkpoints.write(tmp_path / "configless", tensors)
    (tmp_path / "configless" / "config.json").unlink()
    for name, digest, scope in (("scope_a", "0", "all"), ("scope_b", "0", "attention"), ("base_b", "1", "all")):
        checkpoints.write(tmp_path / name, tensors)
        text = yaml.safe_dump(origins.record(digest * 64, scope, 2, "full"))
        (tmp_path / name / "README.md").write_text(f"---\n{text}---\n")
    file = tmp_path / "truncated" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    checkpoints.write(tmp_path / "shard", tensors, 3)
    (tmp_path / "shard" / "model-00002-of-00003.safetensors").unlink()
    for name in ("pickled", "empty", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["merge", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1 and "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_soup_of_files_is_their_average_and_lines_counts_the_layers_that_changed(tmp_path):
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 2, 9, 10)] + ["projector.weight"]
    torch.manual_seed(5)
    base = {name: torch.randn(4, 3) for name in names}
    tuned = [{name: tensor + torch.randn(4, 3) for name, tensor in base.items()} for _ in range(3)]
    for one in tuned:
        one[names[0]] = base[names[0]].clone()
    folders = [checkpoints.write(tmp_path / f"{i}", one) for i, one in enumerate([base, *tuned])]
    soup = checkpoints.read(merge("soup", folders[0], folders[1:], tmp_path / "soup"))
    half = checkpoints.read(merge("soup", folders[0], folders[1:], tmp_path / "half", {"alpha": 0.5}))
    lines = checkpoints.read(merge("lines", folders[0], folders[1], tmp_path / "lines", {"alpha": 0.2}))
    for name, scale in zip(names, (0.0, 0.2, 0.6, 1.0, 0.2), strict=True):
        mean = sum(one[name] for one in tuned) / 3
        torch.testing.assert_close(soup[name], mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(half[name], (mean + base[name]) / 2, rtol=0, atol=1e-6)
        torch.testing.assert_close(lines[name], base[name] + scale * (tuned[0][name] - base[name]), rtol=0, atol=1e-6)
    assert torch.equal(soup[names[0]], base[names[0]])


@pytest.mark.parametrize("text", [
    "", "no front matter", "---\n: [\n---\n", "---\nspiderbench_cell: 3\n---\n", "---\n[]\n---\n",
])
def test_another_card_says_nothing_of_an_origin(text, tmp_path):
    assert origins.origin_of(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert origins.origin_of(tmp_path) is None
    origins.check_origins([tmp_path, tmp_path])


def test_the_merges_are_the_post_hoc_methods():
    for name, entry in METHODS.items():
        if entry.kind == "posthoc":
            assert name in MERGES, name
            assert (name in CALIBRATED) == (build(name, {}, 0).calibration_samples > 0), name
            assert (name in SEVERAL) == isinstance(build(name, {}, 0), SeedMerge), name


def test_the_library_takes_text_paths_and_one_tuned_model_without_a_list(tmp_path, monkeypatch):
    import spiderbench

    monkeypatch.chdir(tmp_path)
    for name, shift in {"base": 0.0, "tuned": 1.0}.items():
        checkpoints.write(tmp_path / name, {"w": torch.arange(4.0) + shift})
    for tuned, out in (("tuned", "one"), (["tuned"], "two")):
        assert spiderbench.merge("wise_ft", "base", tuned, out, {"alpha": 0.5}).samefile(tmp_path / out)
        assert torch.equal(checkpoints.read(tmp_path / out)["w"], torch.arange(4.0) + 0.5)
