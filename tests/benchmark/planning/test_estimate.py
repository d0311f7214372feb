"""A plan on named GPUs: counts, operations, memory and hours by arithmetic, refusals that name what fits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark.cli import main
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.models.batch import collate
from benchmark.models.sizes import architecture_of
from benchmark.planning import estimate
from benchmark.planning.estimate import GIB, GPUS, measured_rate, memory, parse_gpus, remedy, sample_flops
from benchmark.planning.forecast import Forecast, samples_of, steps_of
from benchmark.spec import ROOT
from benchmark.store.cells import Store
from tests.benchmark.models import tiny
from tests.benchmark.models.test_models import item

PAPER = ["table=table5", "profile=paper", "data_root=/nowhere"]


def sizes(name):
    return architecture_of(next(m for m in request([*PAPER]).models if m.id == name).architecture, name)


def setting(name="llava15_7b", **changes):
    values = {
        "sizes": sizes(name), "engine": "zero2", "processes": 8, "micro_batch": 2, "batch": 16, "checkpointing": True,
        "scope": "last_layers", "last_layers": 2, "tokens": 640, "bucket": 50_000_000,
    }
    return estimate.Setting(**values | changes)


def test_counts_are_the_public_ones():
    llava, vila = sizes("llava15_7b"), sizes("vila15_3b")
    assert (llava.total, llava.trainable("last_layers", 2), llava.image_tokens) == (7_063_427_072, 425_746_432, 576)
    assert (vila.total, vila.trainable("last_layers", 2), vila.image_tokens) == (3_148_150_336, 176_971_776, 196)
    assert (llava.block, llava.projector, llava.vision) == (202_383_360, 20_979_712, 303_507_456)
    assert (vila.block, vila.vision, vila.language_model) == (79_303_680, 428_225_600, 2_701_560_320)
    assert llava.trainable("llm", 2) == 32 * llava.block == llava.trainable("all", 2) - llava.projector
    with pytest.raises(UserError, match="a.layers=0: expected a positive"):
        architecture_of({"family": "llava", "hidden": 1, "intermediate": 1, "layers": 0}, "a")
    with pytest.raises(UserError, match="a.widht: no such size"):
        architecture_of({"widht": 1}, "a")


def test_an_adapter_is_planned_by_what_it_trains():
    """LoRA of rank 32 on LLaVA-1.5-7B's last two blocks, counted by hand; the rest of the plan follows from it."""
    cells = {cell.method.id: cell for cell in request(
        [*PAPER, "models=llava15_7b", "methods=full_ft,lora,dora,ln_tuning", "targets=iconqa", "engine=zero2",
         "gpus=0,1"]
    ).cells if cell.train}
    found = {name: estimate.setting_of(cell, sizes("llava15_7b"), 8) for name, cell in cells.items()}
    a_block = 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    projector = sizes("llava15_7b").projector
    assert found["full_ft"].adapter is None and found["full_ft"].trained == 425_746_432
    assert found["lora"].trained == projector + 2 * a_block == projector + 4_997_120
    assert found["dora"].trained == found["lora"].trained + 2 * (5 * 4096 + 2 * 11008)
    assert found["ln_tuning"].trained == projector + 4 * 4096
    full, lora = memory(found["full_ft"]), memory(found["lora"])
    assert lora["optimizer"] == full["optimizer"] * found["lora"].trained / found["full_ft"].trained
    assert lora["base values"] == full["base values"] and lora["method state"] == 0
    flops = {name: sample_flops(setting)["weight gradients"] for name, setting in found.items()}
    assert flops["lora"] < 0.1 * flops["full_ft"]
    narrow = replace(cells["lora"], train=replace(cells["lora"].train, scope="attention"))
    assert estimate.adapter_of(narrow, sizes("llava15_7b")) == 2 * 32 * 4 * 8192
    own = replace(cells["lora"], method=replace(cells["lora"].method, params={"r": 4, "targets": r"mlp\.up_proj"}))
    assert estimate.adapter_of(own, sizes("llava15_7b")) == 2 * 4 * (4096 + 11008)


def test_spiders_added_time_is_below_its_target_by_arithmetic():
    """The numbers of docs/methods.md; test_fused counts the 36 bytes, and no GPU has measured the time."""
    llava, card = setting(checkpointing=False), GPUS["h100"]
    work, moved = llava.batch * sum(sample_flops(llava).values()), 36 * llava.trained
    added, fastest = moved / (1e9 * card.bandwidth), work / (1e12 * card.peak)
    usual = fastest / estimate.UTILISATION[1]
    assert f"{moved / 1e9:.0f} GB, {1e3 * added:.1f} ms, {work / 1e12:.0f} TFLOP" == "15 GB, 4.6 ms, 284 TFLOP"
    assert f"{usual:.2f} s, {added / usual:.1%}; {fastest:.2f} s, {added / fastest:.1%}" == "0.64 s, 0.7%; 0.29 s, 1.6%"
    row = added * 22 / 10 / 36  # of the log's bytes, every ten steps; see test_fused
    assert f"{(added + row) / usual:.1%}, {(added + row) / fastest:.1%}" == "0.8%, 1.7%"


@pytest.mark.parametrize("family", ["llava", "vila"])
def test_operations_are_those_that_torch_counts(family, tmp_path):
    """Blocks, projector and attention of a forward pass; the output layer is left out on both sides."""
    loaded = tiny.load(family, tiny.write(family, tmp_path))
    text, vision = loaded.model.config.get_text_config(), loaded.model.config.vision_config
    values = {
        "family": family, "hidden": 32, "intermediate": 48, "layers": 4, "heads": 2, "kv_heads": 2,
        "vocab": text.vocab_size, "tower": {
            "hidden": 16, "intermediate": 32, "layers": 3, "heads": 2, "image": vision.image_size, "patch": 8,
        },
    }
    small = architecture_of(values, "tiny")
    assert small.total == sum(p.numel() for p in loaded.model.parameters())
    batch = collate(loaded, [item(loaded, "a", "what colour is this animal?", "red", 1)], "right")
    features = loaded.tower(batch["pixel_values"])
    batch |= {"pixel_values": features, "logits_to_keep": torch.tensor([0])}
    labels = batch.pop("labels")
    loaded.model.set_attn_implementation("eager")  # the counter knows no fused attention of a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded.model(**batch)
    counted = counter.get_total_flops() - 2 * 32 * text.vocab_size
    tokens = labels.shape[1]
    ours = sample_flops(setting(sizes=small, tokens=tokens))
    causal = 2.0 * 4 * 32 * tokens**2  # eager attention computes both halves of the matrix
    norms = 2.0 * tokens * 4 * 2 * 32  # their weights are in no matrix product
    assert ours["forward"] + causal - norms == pytest.approx(counted, rel=0.02)


def test_what_a_trainable_projector_costs():
    two, all_layers = sample_flops(setting()), sample_flops(setting(last_layers=32))
    assert two["activation gradients"] == two["forward"] == all_layers["activation gradients"]
    assert sum(all_layers.values()) < 1.4 * sum(two.values())
    assert sum(two.values()) == pytest.approx(26.2e12, rel=0.02)
    assert "recomputation" not in {k for k, v in sample_flops(setting(checkpointing=False)).items() if v}


@pytest.mark.slow
def test_memory_parts():
    parts = memory(setting())
    assert parts["weights"] == 2 * 7_063_427_072
    assert parts["optimizer"] == 12 * 425_746_432 / 8
    assert parts["method state"] == 6 * 425_746_432 / 8
    assert 16 < sum(parts.values()) / GIB < 20  # ~18 GB, facts/models.md section 5
    assert memory(setting(engine="zero3"))["weights"] < parts["weights"] / 3
    rows = memory(setting(engine="fsdp2", processes=2))
    blocks, outside = 32 * 202_383_360, 7_063_427_072 - 32 * 202_383_360 - 20_979_712  # outside: frozen, whole
    cut = (2 * (blocks - 2 * 202_383_360) + 4 * 425_746_432) / 2
    assert rows["weights"] == cut + 2 * outside + 2 * 20_979_712 + 6 * 202_383_360
    assert rows["optimizer"] == 8 * 425_746_432 / 2 and rows["loading"] == 0
    assert rows["gradients"] == 4 * 425_746_432 / 2 + 6 * 202_383_360
    whole = parts["weights"] + 2 * 425_746_432 + parts["CUDA, NCCL"]  # in float32 where it trains, before it is cut
    assert sum(memory(setting(engine="fsdp2")).values()) == pytest.approx(whole)
    without = memory(setting(checkpointing=False))
    assert without["activations"] > 5 * parts["activations"]
    assert memory(setting(method="full_ft"))["method state"] == 0
    single = memory(setting(engine="single", processes=1))
    assert single["optimizer"] == 8 * 425_746_432
    assert single["base values"] == 2 * parts["base values"] == 4 * 425_746_432


def test_a_remedy_fits():
    gpu = GPUS["4090"]
    tight = setting(micro_batch=16, processes=1, checkpointing=False)
    words = remedy(tight, gpu)
    assert words == "2 of these GPUs" or "train." in words
    assert remedy(setting(batch=16, micro_batch=2, checkpointing=False, tokens=2048), gpu) == (
        "train.gradient_checkpointing=true"
    )
    assert remedy(setting(), replace(gpu, memory=1.0)) is None


@pytest.mark.parametrize(("text", "count"), [("4090x8", 8), ("A100", 1), ("a100-40x4", 4)])
def test_cards(text, count):
    assert parse_gpus(text)[1] == count


@pytest.mark.parametrize(
    ("text", "card"), [("A100-80GBx4", "a100"), ("a100-40gb", "a100-40"), ("H100-80GB", "h100"),
                      ("4090-24GBx8", "4090")]
)
def test_a_card_may_say_its_memory(text, card):
    assert parse_gpus(text)[0].name == card


@pytest.mark.parametrize("text", ["4091x8", "4090x0", "", "x8", "4090-80gb"])
def test_unknown_cards_are_refused(text):
    with pytest.raises(UserError, match="expected a card and a number, e.g. 4090x8"):
        parse_gpus(text)


def plan(capsys, *arguments):
    code = main(["plan", *PAPER, *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_plan_of_both_models(capsys, tmp_path):
    code, out, _ = plan(capsys, "gpu=4090x8", f"results={tmp_path}")
    assert code == 0 and "30 cells, 0 done" in out
    assert "425,746,432 parameters, 3,125 steps of 16 samples" in out
    assert "176,971,776 parameters, 3,125 steps of 16 samples" in out
    assert out.count("is trained: activation gradients cross all 32 blocks") == 2
    assert out.count(" of 24 GiB per GPU (spider, engine=zero2, micro-batch 2): weights ") == 2
    assert out.count("activations without gradient checkpointing: ") == 2
    assert "14 deltas of 0.85 GB (a whole checkpoint: 14.1 GB)" in out
    assert "Checkpoint: not found (checkpoints/llava-1.5-7b-hf; hub cache: llava-hf/llava-1.5-7b-hf)" in out


@pytest.mark.slow
def test_a_plan_that_does_not_fit_names_what_does(capsys, tmp_path):
    results = f"results={tmp_path}"
    code, out, err = plan(capsys, "gpu=4090x1", "models=llava15_7b", results)
    assert code == 2 and "more than 24 GiB (4090). It fits with 2 of these GPUs" in err
    code, _, err = plan(capsys, "gpu=4090x8", "engine=single", "models=llava15_7b", results)
    assert code == 2 and "It fits with engine=zero2 and 2 of these GPUs" in err
    code, _, err = plan(capsys, "gpu=4090x3", results)
    assert code == 2 and "3 GPUs with train.micro_batch_size=2 do not divide train.batch_size=16" in err
    code, _, err = plan(capsys, "gpu=4090x8", "gpus=4", results)
    assert code == 2 and "names 8 GPUs, but gpus=4. Make them equal" in err


def test_finished_cells_calibrate_the_hours(tmp_path):
    import yaml

    from benchmark.spec import plain

    asked = request([*PAPER, "models=llava15_7b", f"results={tmp_path}"])
    cell = next(cell for cell in asked.cells if cell.method.id == "full_ft")
    assert (samples_of(cell), steps_of(cell)) == (50_000, 3125)
    assert cell.train is not None
    replayed = replace(cell, train=replace(cell.train, replay="source", replay_share=0.75))  # 4 of 16 are the target's
    assert (samples_of(replayed), steps_of(replayed)) == (200_000, 12_500)
    store = Store(asked.results)
    guess = Forecast(store, asked, "4090x8").span(cell, ["train"])
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    (folder / "cell.yaml").write_text(yaml.safe_dump(plain(cell)))
    speed = {"device": "NVIDIA GeForce RTX 4090", "samples": 16_000, "seconds": 1000.0, "processes": 8}
    (folder / "speed.json").write_text(json.dumps(speed))
    low, high = Forecast(store, asked, "4090x8").span(cell, ["train"])
    assert low == pytest.approx(0.85 * 50_000 / 16) and high == pytest.approx(1.15 * 50_000 / 16)
    assert Forecast(store, asked, "a100x8").span(cell, ["train"]) != (low, high)  # another card: not this measure
    assert guess != (low, high)


@pytest.mark.slow
def test_a_plan_imports_no_torch(tmp_path):
    code = (
        "import sys; from benchmark.cli import main; "
        f"main(['plan', 'table=table5', 'profile=paper', 'gpu=4090x8', 'data_root=/nowhere', 'results={tmp_path}']); "
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pandas', 'scipy', 'matplotlib', 'deepspeed'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_digests_of_large_files_are_remembered(tmp_path, monkeypatch):
    from benchmark.models import digest_cache

    monkeypatch.setenv("SPIDERBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "LARGE", 100)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 200)
    assert digest_cache.checkpoint_digest([folder], digest_cache.known_digest) is None
    digest = digest_cache.checkpoint_digest([folder])
    assert digest_cache.checkpoint_digest([folder], digest_cache.known_digest) == digest
    monkeypatch.setattr(digest_cache, "sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    assert digest_cache.file_digest(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"y" * 201)
    assert digest_cache.known_digest(folder / "model.safetensors") is None


@pytest.mark.parametrize(("device", "gpu", "same"), [
    ("NVIDIA A100-SXM4-80GB", "a100", True), ("NVIDIA A100-SXM4-80GB", "a10", False), ("NVIDIA A10", "a10", True),
    ("NVIDIA GeForce RTX 4090", "4090", True), ("NVIDIA RTX A6000", "a6000", True), ("NVIDIA L40S", "l40s", True),
    ("NVIDIA H100 80GB HBM3", "h100", True), ("NVIDIA A100-PCIE-40GB", "a100-40", True), ("cpu", "a10", False),
])
def test_a_measured_speed_is_of_the_same_card(device, gpu, same):
    speed = {"device": device, "samples": 16_000, "seconds": 1000.0, "processes": 8}
    assert (measured_rate(speed, GPUS[gpu]) is not None) == same
