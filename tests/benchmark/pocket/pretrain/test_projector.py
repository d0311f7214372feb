"""The projector's first weights: equal variance from a steep spectrum, words where they are drawn."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch

from benchmark.pocket.pretrain import corpus, language, projector, run, tower
from benchmark.pocket.pretrain.family import TokenGrid
from benchmark.pocket.pretrain.llama import Llava, Vila
from benchmark.pocket.pretrain.projector import WORDS, words_per_token
from benchmark.pocket.pretrain.qwen import MORE, Qwen
from benchmark.pocket.pretrain.stages import STAGES
from benchmark.pocket.world import targets, upstream
from benchmark.pocket.world.scene import Scene, Sign, Thing


class Vocabulary:
    """Stands in for a tokenizer where only its size matters."""

    def __len__(self) -> int:
        return 60

    def convert_tokens_to_ids(self, token: str) -> int:
        return 59 - MORE.index(token) if token in MORE else 59


@pytest.mark.slow
@pytest.mark.parametrize("family", [Llava(96), Vila(112), Qwen(112)])
def test_first_layer_gives_equal_variances(family):
    vocabulary = Vocabulary()
    model = run.assemble(family, vocabulary, family.make_llm(vocabulary), run.make_tower(family, 0), 0)
    parts = language.Parts(model.eval(), family)
    projector.condition(parts, seed=0, count=256)
    seen = []
    first = next(m for m in parts.projector.modules() if isinstance(m, torch.nn.Linear))
    first.register_forward_hook(lambda _, __, output: seen.append(output.detach().flatten(0, -2)))
    stream = tower.pictures("condition/0", tower.PRETRAINING.__contains__)
    with torch.no_grad():
        for _ in range(2):
            pixels, _ = tower.batch_of(islice(stream, 128), family)
            parts.image_tokens(pixels, torch.float32)
    deviations = torch.cat(seen).double().std(0)
    assert deviations.max() < 0.7  # half scale, measured on other pictures of the same kind
    if isinstance(family, Llava):
        assert deviations.min() > 0.2


def test_words_stand_where_they_are_drawn():
    thing = Thing("cat", "red", (0, 2), 30, (0, 0))
    scene = Scene("beach", (thing,), (Sign("CAFE", "blue", 2, "DejaVuSans-Bold.ttf", 0),))
    shown = words_per_token(scene, Vila(112).grid((112, 112))).reshape(4, 4, -1)  # column, row, word
    cat, cafe, beach = (shown[..., WORDS[word]] for word in ("cat", "CAFE", "beach"))
    assert cat[3, 0] > 0 and cat[2, 0] > 0 and cat[0].sum() == 0 and cat[:, 3].sum() == 0
    assert cafe[:, 3].min() > 0 and cafe[:, 0].sum() == 0
    assert beach[:3, :3].min() == pytest.approx(1.0)
    # All of a thing's cell is found again: a token is (32 / 112)^2 of the picture, a cell a ninth.
    assert cat.sum().item() * (32 / 112) ** 2 == pytest.approx(1 / 9, abs=1e-6)
    by_row = words_per_token(scene, TokenGrid(4, 4, 32 / 112, 32 / 112)).reshape(4, 4, -1)  # row, column, word
    assert torch.equal(by_row, shown.transpose(0, 1))


def test_transcript_names_cells_in_reading_order():
    things = (Thing("dog", "blue", (1, 1), 30, (0, 0)), Thing("cat", "red", (0, 2), 30, (0, 0)))
    words = corpus.transcript(Scene("snow", things)).split()
    assert len(words) == 19 and words[-1] == "snow"
    assert words[4:6] == ["red", "cat"] and words[8:10] == ["blue", "dog"]
    assert words[0:2] == ["no", "thing"]
    signed = corpus.transcript(Scene("snow", (), (Sign("CAFE", "blue", 1, "", 0),))).split()
    assert signed[6:12] == ["blue", "cafe"] * 3


def test_transcript_stages_hold_transcripts_alone():
    prompts = dict.fromkeys(("okvqa", "textvqa", "ocrvqa", "gqa"), "{question}")
    stream = corpus.conversations(0, STAGES["reading"], prompts)
    for _ in range(50):
        (turn,) = next(stream).turns
        assert turn.prompt == corpus.TRANSCRIBE
    rng = random.Random(0)
    picture, item = upstream.ocrvqa(rng)
    turns = corpus.turns_of("ocrvqa", picture, item, rng, prompts)
    assert len(turns) == 6 and turns[0].answer.split()[:2] == list(picture.title)
    assert corpus.transcript(targets.random_diagram(rng)).startswith("Shapes:")
