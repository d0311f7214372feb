"""Pretraining: coverage of the vocabulary, no leak of target texts, exact packing, exact resume."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import eager_attention_forward

import benchmark.models
from benchmark.config.request import request
from benchmark.models.prompt import encode
from benchmark.pocket.pretrain import corpus, language, projector, run, tower
from benchmark.pocket.pretrain.llama import Llava, Vila
from benchmark.pocket.pretrain.qwen import Qwen
from benchmark.pocket.pretrain.stages import STAGES, Stage
from benchmark.pocket.world import targets
from benchmark.pocket.world.content import distinct
from benchmark.pocket.world.splits import TARGETS, UPSTREAM


@pytest.fixture(scope="module")
def prompts():
    return {name: dataset.prompt for name, dataset in request(["profile=pocket"], grid=False).datasets.items()}


@pytest.fixture(scope="module")
def tokenizer(prompts):
    return Llava(96).make_tokenizer(prompts)


def whole_model(family, tokenizer):
    torch.manual_seed(0)
    model = run.assemble(family, tokenizer, family.make_llm(tokenizer), run.make_tower(family, 0), 0)
    return language.Parts(model.eval(), family)


def target_texts(prompts) -> tuple[list[str], list[str]]:
    """Prompts and answers of all targets, from the first items of every split."""
    asked, answered = [], []
    rng = random.Random(0)
    for name in TARGETS:
        for split in ("train", "test"):
            for picture, item, _, _ in islice(distinct(name, split), 300):
                if name in ("iconqa", "scienceqa"):
                    options = "\n".join(f"{targets.letter(k)}. {o}" for k, o in enumerate(item.options))
                    context = f"Context: {item.hint}\n" if item.hint else ""
                    asked.append(prompts[name].format(question=item.question, options=options, context=context))
                    answered.append(targets.letter(item.answer))
                else:
                    asked.append(prompts[name])
                    answered += targets.captions(rng, picture, name)
    return asked, answered


@pytest.mark.slow
def test_every_target_token_is_a_label_500_times(tokenizer, prompts):
    recipe = run.RECIPES["llava_pocket"]
    seen: Counter[int] = Counter()
    for step in range(recipe.language_steps):
        for ids in islice(corpus.text_ids(tokenizer, f"language/{recipe.seed}/{step}", 96), 64):
            seen.update(ids[1:])
    asked, answered = target_texts(prompts)
    image = tokenizer.convert_tokens_to_ids("<image>")
    needed = set()
    for prompt, answer in [(p, "A") for p in asked] + [(asked[0], a) for a in answered]:
        needed.update(encode(tokenizer, prompt, answer, True, image, 1, 4096)[0])
    needed -= {image, tokenizer.bos_token_id}
    assert len(needed) > 200
    rare = {tokenizer.convert_ids_to_tokens(i): seen[i] for i in needed if seen[i] < 500}
    assert not rare


@pytest.mark.slow
def test_no_target_sentence_is_in_pretraining(prompts):
    rng = random.Random(1)
    pretraining = {corpus.sentence(rng).lower() for _ in range(30_000)}
    streams = [
        islice(corpus.conversations(0, STAGES[name], prompts), 1500) for name in ("instruction", "pointing", "final")
    ]
    turns = [turn for conversation in chain(*streams) for turn in conversation.turns]
    pretraining |= {turn.answer.lower() for turn in turns if len(turn.answer.split()) > 1}
    pretraining |= {turn.prompt.lower() for turn in turns}
    asked, answered = target_texts(prompts)
    captions = {text.lower() for text in answered if len(text) > 1}
    assert len(captions) > 1000
    assert not captions & pretraining
    assert not {text.lower() for text in asked} & pretraining
    templates = (
        prompts["flickr30k"],
        prompts["coco"],
        "Answer with the option's letter from the given choices directly.",
    )
    assert not any(template in turn.prompt for template in templates for turn in turns)


def test_upstream_prompts_use_the_shared_instruction(prompts):
    assert all(prompts[name].endswith(corpus.BRIEF) for name in UPSTREAM)


@pytest.mark.slow
@pytest.mark.parametrize("family", [Llava(96), Vila(112)])
def test_packed_turns_equal_single_turns(family, tokenizer, prompts):
    parts = whole_model(family, tokenizer)
    conversation = next(corpus.conversations(3, Stage("test", "", {"gqa": 1}), prompts))
    assert len(conversation.turns) > 3
    image = conversation.picture.draw(random.Random(0))
    pixels = family.pixels([image])

    def loss(turns):
        part = corpus.Conversation(conversation.picture, tuple(turns), 0)
        row = language.pack(part, tokenizer, family, image.size)
        batch = language.Packed([row], pixels, 0)
        return parts.loss(batch).item(), int((batch.labels >= 0).sum())

    single = [loss([turn]) for turn in conversation.turns]
    together, count = loss(conversation.turns)
    assert count == sum(n for _, n in single)
    assert together == pytest.approx(sum(value * n for value, n in single) / count, abs=1e-5)


def letters_batch(conversations, tokenizer, family):
    rows = [language.pack(c, tokenizer, family, c.picture and (112, 112)) for c in conversations]
    return language.Packed(rows, None, 0, language.Inner(tokenizer))


@pytest.mark.parametrize(("family", "size"), [(Llava(96), (112, 112)), (Vila(112), (112, 112)), (Qwen(97), (96, 112))])
def test_the_cell_of_an_image_token_is_where_its_middle_is(family, size):
    grid = family.grid(size)
    cells = grid.cells()
    number = grid.rows * grid.columns
    assert len(cells) == number and set(cells) == {(row, column) for row in range(3) for column in range(3)}
    # Along the order of the tokens the fast axis comes round, the other one only grows.
    slow, fast = (1, 0) if grid.by_column else (0, 1)
    assert [cell[slow] for cell in cells] == sorted(cell[slow] for cell in cells)
    length = grid.rows if grid.by_column else grid.columns
    assert [cell[fast] for cell in cells[:length]] == sorted(cell[fast] for cell in cells[:length])
    if isinstance(family, Qwen):
        assert [cells[row * 3] for row in range(4)] == [(0, 0), (1, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("family", [Llava(96), Vila(112), Qwen(97)])
def test_cells_are_labels_at_image_tokens_of_the_second_and_third_block(family, tokenizer, prompts):
    tokenizer = family.make_tokenizer(prompts) if isinstance(family, Qwen) else tokenizer
    parts = whole_model(family, tokenizer)
    (batch,), (without,) = (
        language.batches(family, tokenizer, 0, replace(STAGES["cells"], pictures=3, cells=cells), 0, 1, prompts)
        for cells in (True, False)
    )
    is_image = batch.input_ids == parts.image_token_id
    assert without.cells is None and batch.cells.shape == (int(is_image.sum()), 2)
    said = {tokenizer.decode(ids).strip() for ids in batch.cells.unique()}
    assert said == {"top", "middle", "bottom", "left", "center", "right"}
    seen = []
    for block in (2, 3):
        parts.decoder.layers[block - 1].register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        loss, plain = parts.loss(batch).item(), parts.loss(without).item()
        rows, columns = (parts.head(parts.decoder.norm(hidden[is_image])) for hidden in seen[:2])
    wanted = F.cross_entropy(rows, batch.cells[:, 0]) + F.cross_entropy(columns, batch.cells[:, 1])
    assert loss - plain == pytest.approx(wanted.item(), abs=1e-4)
    assert parts.hits["cell"][1] == batch.cells.numel()


def test_inner_labels_name_the_option_of_each_letter_and_where_it_stands(tokenizer, prompts):
    stream = corpus.conversations(0, STAGES["pointing"], prompts)
    conversations = list(islice(stream, 30))
    batch = letters_batch(conversations, tokenizer, Llava(64))
    wanted = []
    assert batch.seen(torch.arange(9)).sum() == 45 and sum(batch.lengths) % 64 == 0
    for row, conversation in enumerate(conversations):
        for turn in conversation.turns:
            options = dict(line.split(". ", 1) for line in turn.prompt.split("\n") if line[1:3] == ". ")
            entries = turn.answer.rstrip(".").split("; ") if options else []
            wanted += [(row, entry.split()[-1], options[entry.split()[-1]].split()[0]) for entry in entries]
    (places,) = (batch.due[0] != language.IGNORE).nonzero(as_tuple=True)
    pointed = batch.pointers[0, places]
    assert torch.equal(batch.due[0, places], batch.labels[0, places])
    assert torch.equal(batch.due[0, places], batch.options[0, pointed])
    assert torch.equal(batch.words[0, places], batch.input_ids[0, pointed])
    assert batch.seen(places - 1)[torch.arange(len(places)), pointed].all()
    letters, words = (tokenizer.convert_ids_to_tokens(ids[0, places].tolist()) for ids in (batch.due, batch.words))
    found = list(zip(batch.conversation[places].tolist(), letters, words, strict=True))
    assert len(wanted) > 100
    for (row, letter, word), (found_row, found_letter, piece) in zip(wanted, found, strict=True):
        assert (row, letter) == (found_row, found_letter.strip("▁")) and word.startswith(piece.strip("▁"))


@pytest.mark.parametrize("family", [Llava(96), Vila(112), Qwen(112)])
def test_the_pointing_loss_is_the_attention_of_the_model_itself(family, tokenizer, prompts, monkeypatch):
    tokenizer = family.make_tokenizer(prompts) if isinstance(family, Qwen) else tokenizer
    parts = whole_model(family, tokenizer)
    turns = tuple(corpus.letter_keys(random.Random(seed)) for seed in range(3))
    conversations = [corpus.Conversation(None, turns, 0), corpus.Conversation(None, turns[:1], 0)]
    batch = letters_batch(conversations, tokenizer, family)
    seen, weights = [], []
    block = parts.decoder.layers[language.POINTER_BLOCK - 1]
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def eager(module, query, key, value, mask, **settings):
        found = eager_attention_forward(module, query, key, value, mask, **settings)
        if module is block.self_attn:
            weights.append(found[1])
        return found

    monkeypatch.setattr(language, "sdpa_attention_forward", eager)
    with torch.no_grad():
        parts.loss(batch)
        loss = parts._pointing(seen[0], batch)
    (places,) = (batch.pointers[0] != language.IGNORE).nonzero(as_tuple=True)
    looks = torch.block_diag(*(part[0, 0] for part in weights))[places - 1, batch.pointers[0, places]]
    assert len(places) > 5 and len(weights) == len(batch.lengths) == 3
    assert loss.item() == pytest.approx(-looks.log().mean().item(), abs=1e-5)


def test_letters_weigh_as_much_as_all_other_words_and_inner_labels_reach_only_the_blocks_below(tokenizer):
    family = Llava(96)
    parts = whole_model(family, tokenizer)
    turn = corpus.knowledge_choice(random.Random(0))
    conversation = corpus.Conversation(None, (turn,), 0)
    batch = letters_batch([conversation], tokenizer, family)
    plain = language.Packed([language.pack(conversation, tokenizer, family, None)], None, 0)
    inner = parts.loss(batch) - 2 * parts.loss(plain)  # one letter and one end token
    assert inner.item() > 0
    inner.backward()
    assert parts.decoder.layers[language.WORD_BLOCK - 1].mlp.up_proj.weight.grad.abs().max() > 0
    assert parts.decoder.layers[-1].mlp.up_proj.weight.grad.abs().max() < 1e-5


@pytest.mark.parametrize("family,size", [(Llava(96), 96), (Vila(112), 112)])
def test_tower_features_are_hidden_states_minus_2(family, size):
    model = run.make_tower(family, 0).eval()
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        pixel_values = family.processor.normalise(pixels)
        wanted = model(pixel_values=pixel_values, output_hidden_states=True).hidden_states[-2]
        found = family.features(model, pixels, torch.float32).values
    assert found.shape[1] == (size // 16) ** 2
    assert torch.equal(found, wanted[:, -found.shape[1] :])


@pytest.mark.slow
def test_language_stage_resumes_exactly(tokenizer, tmp_path):
    def stage(folder, log):
        torch.manual_seed(0)
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **{**Llava.text, "num_hidden_layers": 1}))
        language.train_language(llm, tokenizer, folder, 4, 0, log, batch=2, length=16, save_every=2)
        return llm.state_dict()

    def interrupt(_):
        raise KeyboardInterrupt

    whole = stage(tmp_path / "a", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "b", interrupt)
    resumed = stage(tmp_path / "b", lambda _: None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_tower_labels_name_what_is_drawn():
    rng = random.Random(0)
    scene = targets.caption_scene(rng)
    found = tower.labels_of(scene)
    thing = scene.things[0]
    position = thing.cell[0] * 3 + thing.cell[1]
    assert tower.HEADS["icon"][1][found["icon"][position] - 1] == thing.icon
    assert tower.HEADS["colour"][1][found["colour"][position] - 1] == thing.colour
    assert sum(label != tower.NONE for label in found["icon"]) == len(scene.things)
    assert found["sign"] == [tower.NONE] * 3


@pytest.mark.slow
def test_a_recipe_of_single_steps_makes_a_checkpoint_and_goes_on_where_it_was_cut(
    prompts, tokenizer, tmp_path, monkeypatch
):
    spec = request(["profile=pocket", "table=table5", "models=llava_pocket"], grid=False).models[0]
    spec = replace(spec, checkpoint=str(tmp_path / "out"))
    names = [name for name in vars(run.RECIPES["llava_pocket"]) if name.endswith("_steps") and name != "names_steps"]
    recipe = replace(run.RECIPES["llava_pocket"], image_size=32, **dict.fromkeys(names, 1))
    monkeypatch.setattr(projector, "condition", partial(projector.condition, count=128))
    monkeypatch.setattr(tower, "train", partial(tower.train, batch=8))
    monkeypatch.setattr(tower, "probe", partial(tower.probe, size=128))
    few = {name: replace(stage, pictures=2) for name, stage in STAGES.items()}
    monkeypatch.setattr(run, "STAGES", few)
    done = []
    whole = language.train_joint

    def cut(*args):
        done.append(args[4].name)
        if len(done) == 3:
            raise KeyboardInterrupt
        whole(*args)

    monkeypatch.setattr(language, "train_joint", cut)
    with monkeypatch.context() as patch:  # the tokenizer of "b" is made anew, and must be the same
        patch.setattr(Llava, "make_tokenizer", lambda *_: tokenizer)
        with pytest.raises(KeyboardInterrupt):
            run.make(spec, recipe, prompts, tmp_path / "a")
        path = run.make(spec, recipe, prompts, tmp_path / "a")
    digest = benchmark.models.digest(path)
    assert done[3:] == ["alignment", "reading", "covers", "matching", "quiz", "letters", "choices", "more_choices",
                        "instruction", "authors", "pointing", "cells", "final"]
    assert digest == benchmark.models.digest(run.make(spec, recipe, prompts, tmp_path / "b"))
    training = json.loads((path / "training.json").read_text())
    assert training["recipe"]["final_steps"] == 1 and training["mixtures"]["final"] == STAGES["final"].mixture
    log = (tmp_path / "a/llava_pocket/log.txt").read_text()
    lines = {line.split("] ")[1].split()[0]: line for line in log.splitlines()}
    kinds = {share.rsplit(" ", 1)[0] for share in lines["reading"].split(" correct: ")[1].split(", ")}
    assert kinds and kinds < tower.HEADS.keys()
    assert " correct: cell " in lines["cells"]
    assert " correct: " in lines["pointing"] and " correct: " not in lines["quiz"]
    loaded = benchmark.models.load(spec, torch.float32)
    before = torch.load(tmp_path / "a" / "llava_pocket" / "quiz" / "checkpoint.pt", weights_only=True)["parts"]["head"]
    assert loaded.image_seq_length == 4
    assert not torch.equal(loaded.model.lm_head.weight, before["weight"].half().float())
