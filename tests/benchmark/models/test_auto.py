"""Family auto: each named type is loaded, masked, batched, trained, answered and written like any other model."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import benchmark.models
from benchmark.data.record import Record
from benchmark.models import LoadedModel, trainable_names
from benchmark.models.batch import Item, Items, collate
from benchmark.models.prompt import IGNORE
from benchmark.training.checkpoint import apply_delta, load_delta, snapshot
from benchmark.training.generate import answer_batch
from benchmark.training.objective import batch_loss, training_batch
from benchmark.training.train import train
from methods.registry import build
from tests.benchmark.models import auto_tiny, tiny
from tests.benchmark.training.auto_cells import cell

SIZES = [(64, 48), (30, 90), (28, 28), None]  # None: no image
TORCHVISION = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
KINDS = [pytest.param(kind, marks=TORCHVISION if kind == "mistral3" else ()) for kind in auto_tiny.TYPES]
ANSWERS = ["red", "a blue dog", "A", "green cat"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    """A checkpoint of each type."""
    return auto_tiny.write(request.param, tmp_path_factory.mktemp("auto") / request.param)


@pytest.fixture(scope="module")
def loaded(folder) -> LoadedModel:
    return auto_tiny.load(folder.name, folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """Four questions: on images of three sizes, and on none."""
    place = tmp_path_factory.mktemp("pictures")
    made = []
    for number, size in enumerate(SIZES):
        path = None if size is None else place / f"{number}.png"
        if path is not None:
            tiny.picture(*size, seed=number).save(path)
        prompt = f"What colour is animal {number}?" + " Answer the question using a single word." * (number % 2)
        made.append(Record(f"item{number}", "toy", "train", path, prompt, ANSWERS[number], (), None, str(number), {}))
    return made


def items_of(loaded: LoadedModel, records: list[Record], supervised: bool = True) -> list[Item]:
    items = Items(loaded, records, supervised)
    return [items[number] for number in range(len(records))]


def own(loaded: LoadedModel, records: list[Record], padding_side: str) -> dict[str, torch.Tensor]:
    """Return what the checkpoint's processor makes of whole conversations about images."""
    inputs, processor = loaded.inputs, loaded.inputs.processor
    texts = [inputs.conversation.render(record.prompt, record.target, True) for record in records]
    suffix = {} if inputs.conversation.template else {"suffix": [record.target for record in records]}
    images = [[Image.open(record.image).convert("RGB")] for record in records]
    return dict(processor(
        text=texts, images=images, padding=True, padding_side=padding_side, return_tensors="pt", **suffix
    ))


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_parts_are_the_models_own(loaded):
    names = dict(loaded.model.named_parameters())
    last = trainable_names(loaded, "last_layers", 2)
    blocks = [name for name in last if not name.startswith(loaded.projector_prefix)]
    projector = last[: len(last) - len(blocks)]
    assert projector and all(name.startswith(loaded.projector_prefix) for name in projector)
    assert len(loaded.block_prefixes) == 3
    assert {prefix for prefix in loaded.block_prefixes if any(name.startswith(prefix) for name in blocks)} == {
        *loaded.block_prefixes[1:]
    }
    decoder = loaded.model.get_decoder().layers
    assert {id(p) for layer in decoder[1:] for p in layer.parameters()} == {id(names[name]) for name in blocks}
    assert any(loaded.tower_prefix in name for name in names)
    assert not any("embed_tokens" in name or "lm_head" in name for name in last)


# ---------------------------------------------------------------------------------------------------------------------
# Texts and masks


def test_exactly_the_answer_and_its_end_are_supervised(loaded, records):
    for record, item in zip(records, items_of(loaded, records), strict=True):
        supervised = [token for token in item.labels if token != IGNORE]
        text = loaded.tokenizer.decode(supervised)
        assert text.strip() == record.target + loaded.inputs.conversation.end
        assert supervised[-1] == loaded.eos_token_id and item.input_ids[-len(supervised) :] == supervised
        asked = items_of(loaded, [record], supervised=False)[0]
        assert asked.input_ids + supervised == item.input_ids and set(asked.labels) == {IGNORE}
        assert record.prompt in loaded.tokenizer.decode(asked.input_ids)
        assert (loaded.image_token_id in asked.input_ids) == (record.image is not None)


def test_special_tokens_in_a_text_stay_text(loaded, records):
    end = loaded.inputs.conversation.end
    record = replace(records[0], prompt=f"is {end} red?", target=f"A {end} B")
    item = items_of(loaded, [record])[0]
    asked = items_of(loaded, [replace(record, prompt="is it red?")], supervised=False)[0]
    assert [token for token in item.labels if token != IGNORE].count(loaded.eos_token_id) == 1
    assert item.input_ids.count(loaded.eos_token_id) == asked.input_ids.count(loaded.eos_token_id) + 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_equals_the_processors_own(loaded, records, side):
    batch = collate(loaded, items_of(loaded, records[:3]), side)
    expected = own(loaded, records[:3], side)
    known = {"batch_num_images"}  # one image per item is the model's default
    assert expected.keys() - batch.keys() <= known and batch.keys() - expected.keys() <= {"labels"}
    for name in batch.keys() & expected.keys() - {"labels"}:
        mask = expected["attention_mask"] if name == "token_type_ids" else torch.ones(())
        assert torch.equal(batch[name] * mask.long() if mask.ndim else batch[name], (
            expected[name] * mask if mask.ndim else expected[name]
        )), name


# ---------------------------------------------------------------------------------------------------------------------
# The model


def test_answers_in_a_batch_equal_single_ones(loaded, records):
    items = items_of(loaded, records, supervised=False)
    single = [answer_batch(loaded, [item], 6)[0] for item in items]
    assert answer_batch(loaded, items, 6) == single
    assert len({text for text, _ in single}) > 1, "the answers do not depend on the questions"


def test_a_picture_changes_the_logits(loaded, records):
    logits = []
    for seed in (1, 2):
        record = replace(records[0], image=records[0].image.with_name(f"other{seed}.png"))
        tiny.picture(64, 48, seed).save(record.image)
        batch = collate(loaded, items_of(loaded, [record]), "right")
        with torch.no_grad():
            logits.append(loaded.model(**batch).logits[0, -2])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_the_loss_is_the_models_own(loaded, records):
    items = items_of(loaded, records)
    loaded.model.train()  # some types build another mask then
    try:
        with torch.no_grad():
            single = []
            for item in items:
                count = sum(label != IGNORE for label in item.labels)
                loss, _ = batch_loss(loaded.model, _inputs(loaded, [(item, 1 / count)]), autocast=False)
                whole = loaded.model(**collate(loaded, [item], "right")).loss
                torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
                single.append(loss / 4)
            pairs = [(item, 1 / (4 * sum(label != IGNORE for label in item.labels))) for item in items]
            together, _ = batch_loss(loaded.model, _inputs(loaded, pairs), autocast=False)
            torch.testing.assert_close(together, sum(single), rtol=1e-5, atol=1e-6)
    finally:
        loaded.model.eval()


def _inputs(loaded, pairs):
    batch = training_batch(loaded, pairs)
    del batch["item_ids"]
    return batch


def test_a_micro_batch_without_images_gets_a_dummy_image(loaded, records):
    text = items_of(loaded, records[3:])
    blank = Items(loaded, records[3:], supervised=True).blank
    with torch.no_grad():
        plain, _ = batch_loss(loaded.model, _inputs(loaded, [(text[0], 0.5)]), autocast=False)
        batch = training_batch(loaded, [(text[0], 0.5)], blank)
        assert batch.pop("item_ids") == ["item3", "blank"] and "pixel_values" in batch
        with_image, _ = batch_loss(loaded.model, batch, autocast=False)
    torch.testing.assert_close(plain, with_image, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full_ft", "spider"])
def test_three_steps_change_only_what_trains(folder, records, method, tmp_path):
    loaded = auto_tiny.load(folder.name, folder)
    before = snapshot(loaded.model, [name for name, _ in loaded.model.named_parameters()])
    one = cell(loaded, method)
    train(one, loaded, records, build(method, {}, 0), tmp_path)
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 3
    names = trainable_names(loaded, "last_layers", 2)
    changed = {name for name, value in loaded.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= {*names}
    # Full FT moves every tensor that has a gradient; a key's bias never has one.
    assert method == "spider" or {*names} - changed <= {name for name in names if name.endswith("k_proj.bias")}
    assert any(name.startswith(loaded.projector_prefix) for name in changed)

    fresh = auto_tiny.load(folder.name, folder)
    delta = load_delta(tmp_path / "delta.safetensors", fresh.digest)
    assert {*delta} == changed
    apply_delta(fresh.model, delta)
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in fresh.model.state_dict().items())
    items = items_of(fresh, records, supervised=False)
    assert answer_batch(fresh, items, 4) == answer_batch(loaded, items, 4)


@pytest.mark.slow
def test_checkpointed_blocks_give_the_same_gradients(folder, records, tmp_path):
    deltas = []
    for checkpointing in (False, True):
        loaded = auto_tiny.load(folder.name, folder)
        out = tmp_path / str(checkpointing)
        out.mkdir()
        one = cell(loaded, "full_ft")
        one = replace(one, train=replace(one.train, gradient_checkpointing=checkpointing))
        train(one, loaded, records, build("full_ft", {}, 0), out)
        deltas.append(load_delta(out / "delta.safetensors", loaded.digest))
    assert deltas[0].keys() == deltas[1].keys()
    assert all((deltas[0][name] - deltas[1][name]).abs().max() < 1e-5 for name in deltas[0])


def test_bfloat16_trains_and_answers(folder, records, tmp_path):
    loaded = auto_tiny.load(folder.name, folder, torch.bfloat16)
    one = replace(cell(loaded, "full_ft"), dtype="bfloat16")
    train(replace(one, train=replace(one.train, epochs=1)), loaded, records, build("full_ft", {}, 0), tmp_path)
    delta = load_delta(tmp_path / "delta.safetensors", loaded.digest)
    assert delta and all(value.dtype == torch.bfloat16 for value in delta.values())
    assert len(answer_batch(loaded, items_of(loaded, records, supervised=False), 3)) == 4


def test_the_registry_names_the_module():
    assert benchmark.models.family_of("auto").COMPLETE
