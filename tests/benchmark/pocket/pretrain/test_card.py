"""The model card says what the shipped models were made by."""

from __future__ import annotations

import json
import re

import pytest

from benchmark.pocket.pretrain import card, run
from benchmark.pocket.pretrain.stages import RECIPES, STAGES
from benchmark.spec import at_root


@pytest.mark.parametrize("name", ["llava_pocket", "vila_pocket", "qwen_pocket"])
def test_the_shipped_card_and_record_are_those_of_the_recipe(name):
    folder, recipe = at_root(f"benchmark/checkpoints/{name}"), RECIPES[name]
    family = run.FAMILIES[recipe.family]
    training = json.loads((folder / "training.json").read_text())
    later = dict.fromkeys({"covers_steps", "authors_steps", "cells_steps"} - training["recipe"].keys(), 0)
    assert {**training["recipe"], **later} == vars(recipe)
    assert (training["text"], training["vision"]) == (family.text, family.vision)
    text = (folder / "README.md").read_text()
    assert "\n".join(card.recipe_lines(recipe, family)) in text and training["digest"][:16] in text


def test_the_card_has_each_stage_of_the_recipe_with_its_pictures():
    recipe, family = RECIPES["qwen_pocket"], run.FAMILIES["qwen"]
    text = " ".join("\n".join(card.recipe_lines(recipe, family)).split())
    assert "2. Tower: 2300 steps of 64 drawn pictures" in text and "3. Names: 400 steps of 96 pictures." in text
    assert "4. Alignment: 1800 steps of 16 pictures with transcripts" in text
    assert "7. Matching: 2000 steps of 8 pictures with short look-ups" in text
    assert "Sources in percent: okvqa 5, textvqa 15, ocrvqa 60, gqa 10, describe 10." in text
    named = [name.lower() for name in re.findall(r"\d+\. ([A-Z][a-z]+(?: [a-z]+)?): ", text)]
    assert named == ["language", "tower", "names", *(name for name in STAGES if name != "more_choices")]
