"""The Qwen family of pretraining computes what family auto computes from the checkpoint that it writes."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import benchmark.models
from benchmark.config.request import request
from benchmark.models.batch import Item
from benchmark.models.prompt import IGNORE
from benchmark.pocket.pretrain import corpus, language, projector, qwen, run, tower
from benchmark.pocket.pretrain.qwen import Qwen
from benchmark.pocket.pretrain.stages import STAGES, Stage
from benchmark.pocket.world import targets, upstream

FAMILY = Qwen(run.RECIPES["qwen_pocket"].image_size)


@pytest.fixture(scope="module")
def prompts():
    return {name: dataset.prompt for name, dataset in request(["profile=pocket"], grid=False).datasets.items()}


@pytest.fixture(scope="module")
def tokenizer(prompts):
    return FAMILY.make_tokenizer(prompts)


@pytest.fixture(scope="module")
def spec():
    return request(["profile=pocket", "table=table5", "models=qwen_pocket"], grid=False).models[0]


@pytest.fixture(scope="module")
def model(tokenizer):
    return run.assemble(FAMILY, tokenizer, FAMILY.make_llm(tokenizer), run.make_tower(FAMILY, 0), 0).eval()


@pytest.fixture(scope="module")
def loaded(spec, model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    FAMILY.save(model, tokenizer, path)
    return benchmark.models.load(replace(spec, checkpoint=str(path)), torch.float32)


@pytest.fixture(scope="module")
def images():
    """A scene, a cover and a diagram."""
    rng = random.Random(3)
    pictures = upstream.gqa(rng)[0], upstream.ocrvqa(rng)[0], targets.random_diagram(rng)
    return [picture.draw(rng) for picture in pictures]


def test_pictures_have_grids_of_their_own_and_the_processors_pixels(images, loaded):
    pixels = FAMILY.pixels(images)
    assert pixels.grids[:2] == ((6, 6), (8, 6)) and pixels.grids[2][0] < 8
    made = loaded.image_processor(images, return_tensors="pt")
    assert isinstance(loaded.image_processor, Qwen2VLImageProcessorPil)
    assert made["image_grid_thw"][:, 1:].tolist() == [list(grid) for grid in pixels.grids]
    film = made["pixel_values"].unflatten(-1, (3, 2, -1))
    counts = [rows * columns for rows, columns in pixels.grids]
    for values, wanted in zip(pixels.values, film.split(counts), strict=True):
        assert torch.equal(wanted[:, :, 0], wanted[:, :, 1])
        found = qwen._normalise(values[: len(wanted)])
        assert torch.allclose(found, wanted[:, :, 0].flatten(1), atol=1e-6)


def test_the_tower_computes_what_the_model_computes(images, loaded):
    made = loaded.image_processor(images, return_tensors="pt")
    visual = loaded.model.model.visual
    with torch.no_grad():
        wanted = visual(made["pixel_values"], grid_thw=made["image_grid_thw"]).pooler_output
        features = FAMILY.features(visual, FAMILY.pixels(images), torch.float32)
        found = FAMILY.project(visual.merger, features)
        assert torch.allclose(found, wanted, atol=1e-5)
        # Windows matter: with one that holds all patches the result is another.
        visual.fullatt_block_indexes, old = [0, 1, 2, 3], visual.fullatt_block_indexes
        everywhere = FAMILY.project(visual.merger, FAMILY.features(visual, FAMILY.pixels(images), torch.float32))
        visual.fullatt_block_indexes = old
    assert not torch.allclose(everywhere, wanted, atol=1e-3)


def test_turns_masks_and_positions_are_those_of_fine_tuning(images, loaded, tokenizer, prompts):
    question = prompts["gqa"].format(question="What color is the cat?")
    for image in (*images, None):
        size = None if image is None else image.size
        found = FAMILY.encode(tokenizer, question, "navy blue", size)
        assert found == loaded.inputs.encode_text(question, "navy blue", size)
        ids, labels = found
        assert tokenizer.decode([label for label in labels if label != IGNORE]) == "navy blue<|im_end|>"
        grid = None if size is None else torch.tensor([[1, *FAMILY.patches(size)]])
        types = torch.tensor([[int(token == loaded.image_token_id) for token in ids]])
        wanted, _ = loaded.model.model.get_rope_index(torch.tensor([ids]), types, grid)
        positions = torch.tensor(FAMILY.positions(ids, loaded.image_token_id, size))
        assert torch.equal(positions.T, wanted[:, 0])


def test_the_packed_loss_is_the_models_own(loaded, tokenizer, prompts):
    stage = Stage("test", "", {"ocrvqa": 1, "gqa": 1, "describe": 1, "text": 1})
    conversations = corpus.conversations(3, stage, prompts)
    chosen = [next(conversations) for _ in range(6)]
    drawn = [c.picture and c.picture.draw(random.Random(c.seed)) for c in chosen]
    assert any(image is None for image in drawn) and len({image.size for image in drawn if image}) > 1
    total, count = 0.0, 0
    for conversation, image in zip(chosen, drawn, strict=True):
        tensors = {} if image is None else loaded.inputs.tensors(image)
        for turn in conversation.turns:
            ids, labels = loaded.inputs.encode_text(turn.prompt, turn.answer, image and image.size)
            item = Item("x", ids, labels, tensors or None)
            with torch.no_grad():
                loss = loaded.model(**loaded.inputs.collate([item], "right")).loss.item()
            number = sum(label != IGNORE for label in labels)
            total, count = total + loss * number, count + number
    rows = [
        language.pack(c, tokenizer, FAMILY, image and image.size) for c, image in zip(chosen, drawn, strict=True)
    ]
    batch = language.Packed(rows, FAMILY.pixels([image for image in drawn if image]), tokenizer.pad_token_id)
    with torch.no_grad():
        found = language.Parts(loaded.model, FAMILY).loss(batch).item()
    assert int((batch.labels != IGNORE).sum()) == count
    assert found == pytest.approx(total / count, abs=1e-4)


def test_the_head_is_the_embedding_and_is_trained_once(model, loaded):
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    parts = FAMILY.modules(model)
    assert parts.head.weight is parts.decoder.embed_tokens.weight
    assert parts.decoder.config.num_key_value_heads < parts.decoder.config.num_attention_heads


def test_the_merger_learns_at_a_quarter_of_the_rate(model, tokenizer, prompts, tmp_path):
    trained = copy.deepcopy(model)
    stage = replace(STAGES["alignment"], pictures=2)
    language.train_joint(trained, tokenizer, FAMILY, tmp_path, stage, 1, 0, prompts, print)
    old, new = FAMILY.modules(model), FAMILY.modules(trained)
    merger, block = (  # Adam's first step is as long for every weight that has a gradient
        (after.weight - before.weight).abs().max().item()
        for before, after in (
            (old.projector.mlp[2], new.projector.mlp[2]),
            (old.decoder.layers[0].mlp.up_proj, new.decoder.layers[0].mlp.up_proj),
        )
    )
    assert merger == pytest.approx(0.25 * block, rel=0.01)


@pytest.mark.slow
def test_a_recipe_of_single_steps_makes_a_checkpoint_that_answers(spec, tokenizer, prompts, tmp_path, monkeypatch):
    spec = replace(spec, checkpoint=str(tmp_path / "out"))
    recipe = run.RECIPES["qwen_pocket"]
    steps = {name: 1 for name, value in vars(recipe).items() if name.endswith("_steps") and value}
    monkeypatch.setattr(Qwen, "make_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(projector, "condition", partial(projector.condition, count=128))
    monkeypatch.setattr(tower, "train", partial(tower.train, batch=4))
    monkeypatch.setattr(tower, "probe", partial(tower.probe, size=128))
    monkeypatch.setattr(language, "train_language", partial(language.train_language, batch=4))
    few = {name: replace(stage, pictures=2) for name, stage in STAGES.items()}
    monkeypatch.setattr(run, "STAGES", few)
    path = run.make(spec, replace(recipe, image_size=56, **steps), prompts, tmp_path / "work")
    assert benchmark.models.digest(path) == benchmark.models.digest(
        run.make(spec, replace(recipe, image_size=56, **steps), prompts, tmp_path / "work")
    )
    training = json.loads((path / "training.json").read_text())
    assert training["recipe"]["family"] == "qwen" and training["text"]["tie_word_embeddings"]
    assert sum(file.stat().st_size for file in path.iterdir()) < 12e6
    loaded = benchmark.models.load(spec, torch.float32)
    names = benchmark.models.trainable_names(loaded, "last_layers", 2)
    assert names[0].startswith("model.visual.merger.") and "lm_head.weight" not in names
    ids, _ = loaded.inputs.encode_text("What is shown?", None, (112, 112))
    assert ids.count(loaded.image_token_id) == 4  # 56 x 56 pixels at most
    first = torch.load(tmp_path / "work" / "qwen_pocket" / "alignment" / "checkpoint.pt", weights_only=True)["parts"]
    trained = loaded.model.get_input_embeddings().weight
    assert not torch.equal(trained, first["decoder"]["embed_tokens.weight"].half().float())
