"""The model card says what the shipped models were made by."""

from __future__ import annotations

import json

import pytest

from benchmark.pocket.pretrain import card, run
from benchmark.spec import at_root


@pytest.mark.parametrize("name", ["llava_pocket", "vila_pocket", "qwen_pocket"])
def test_the_shipped_card_and_record_are_those_of_the_recipe(name):
    folder, recipe = at_root(f"benchmark/checkpoints/{name}"), run.RECIPES[name]
    family = run.FAMILIES[recipe.family]
    training = json.loads((folder / "training.json").read_text())
    later = dict.fromkeys({"covers_steps", "authors_steps", "cells_steps"} - training["recipe"].keys(), 0)
    assert {**training["recipe"], **later} == vars(recipe)
    assert (training["text"], training["vision"]) == (family.text, family.vision)
    lines = card._recipe(training, (family.tower_batch, run.TRANSCRIPTS, family.batch))
    assert "\n".join(lines) in (folder / "README.md").read_text()


def test_the_card_counts_pictures_by_the_family():
    training = {"recipe": vars(run.RECIPES["qwen_pocket"]), "mixture": {}, "final": {}}
    text = "\n".join(card._recipe(training, (64, 16, 8)))
    assert "2300 steps of 64 drawn pictures" in text and "1800 steps of 16 pictures with transcripts" in text
    assert "Then 800 of 16 pictures, most of them covers, with two questions each." in text
    assert "Then 800 steps of 8 pictures with look-ups of places and questions" in text
    assert "steps with more signs and covers, and 1400 with covers for the most part." in text
    assert "2000 steps of 8 pictures with short look-ups" in text
