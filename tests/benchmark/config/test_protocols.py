"""Named protocols: their bytes, their place in the cell's key, and how a wrong name is answered."""

from __future__ import annotations

import pytest

from benchmark.config import compose, protocols
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.spec import cell_id, plain, protocol

EIGHT = ("okvqa", "textvqa", "ocrvqa", "gqa", "flickr30k", "coco", "iconqa", "scienceqa")


@pytest.mark.parametrize("name", EIGHT)
def test_the_default_is_what_the_configuration_says(name):
    values = plain(request(["profile=paper"], grid=False).datasets[name])
    known = protocols.choices(name)
    assert [choice.default for choice in known.values()] == [True] + [False] * (len(known) - 1)
    assert protocols.name_of(values, name) == next(iter(known)) and len(known) >= 2
    assert protocols.apply(values, name, next(iter(known))) == values
    for choice in list(known)[1:]:
        changed = protocols.apply(values, name, choice)
        assert changed != values and protocols.name_of(changed, name) == choice


@pytest.mark.parametrize("profile", ["pocket", "paper"])
@pytest.mark.parametrize("name", [*protocols.choices("coco")])
def test_what_the_profile_says_anyway_is_nobodys_choice(profile, name):
    """The pocket scale draws from train and restval anyway, so every other choice was called karpathy_restval."""
    values = plain(request([f"profile={profile}", f"protocol.coco={name}"], grid=False).datasets["coco"])
    usual = compose.usual(profile)["dataset"]["coco"]
    same = protocols.apply(usual, "coco", name) | {"counts": usual["counts"]} == usual  # it changes nothing here
    assert protocols.name_of(values, "coco", usual) == ("one_sentence" if same else name)


def one(*overrides: str):
    return request(["profile=paper", "method=full_ft", "model=llava15_7b", *overrides]).cells[0]


@pytest.mark.parametrize(("target", "name"), [
    (target, name) for target in EIGHT[4:] for name in list(protocols.choices(target))[1:]
])
def test_every_choice_is_another_cell(target, name):
    default, chosen = one(f"dataset={target}"), one(f"dataset={target}", f"protocol.{target}={name}")
    assert protocol(default.dataset(target)) != protocol(chosen.dataset(target))
    assert cell_id(default) != cell_id(chosen)
    assert protocols.name_of(plain(chosen.dataset(target)), target) == name


def test_the_default_by_name_is_the_same_cell_and_a_key_has_the_last_word():
    assert one("dataset=iconqa") == one("dataset=iconqa", "protocol.iconqa=letter")
    cell = one("dataset=iconqa", "dataset.iconqa.max_new_tokens=5", "protocol.iconqa=answer_letter")
    assert cell.dataset("iconqa").max_new_tokens == 5
    assert cell.dataset("iconqa").options["target_format"] == "Answer: {letter}"
    both = request([
        "profile=paper", "method=full_ft", "model=llava15_7b", "dataset=iconqa", "protocol.iconqa=letter,answer_letter",
    ]).cells
    assert len({cell_id(cell) for cell in both}) == 2


def test_a_stop_rule_is_part_of_the_protocol():
    default, chosen = one("dataset=iconqa"), one("dataset=iconqa", 'dataset.iconqa.stop=["###","</s>"]')
    assert default.dataset("iconqa").stop == () and chosen.dataset("iconqa").stop == ("###", "</s>")
    assert "stop" not in protocol(default.dataset("iconqa")) and cell_id(default) != cell_id(chosen)
    assert protocols.name_of(plain(chosen.dataset("iconqa")), "iconqa") == "own"
    assert one("dataset=iconqa", "protocol.iconqa=first_line").dataset("iconqa").stop == ("\n",)


@pytest.mark.parametrize(("value", "message"), [
    ('["\\n"]', r"'\\\\n': expected text without a backslash, .*use protocol.gqa=first_line"),
    ('[""]', "stop='': expected text"), ("[1]", "stop=1: expected text"), ("stop", "expected a list"),
    ("null", "expected a list"),
])
def test_wrong_stop_rules(value, message):
    with pytest.raises(UserError, match=message):
        one("dataset=iconqa", f"dataset.gqa.stop={value}")


@pytest.mark.parametrize(("override", "message"), [
    ("protocol.iconqa=lettre", "Did you mean 'letter'"), ("protocol.icon=letter", "Did you mean 'iconqa'"),
    ("protocol.textvqa_no_ocr=ocr", "has no named protocols"), ("gate=maybe", "Valid: stop, warn"),
])
def test_wrong_names(override, message):
    with pytest.raises(UserError, match=message):
        one("dataset=iconqa", override)


def test_the_paper_trains_coco_on_train2014():
    assert one("dataset=coco").dataset("coco").splits["train"] == "train"
    assert one("dataset=coco", "protocol.coco=karpathy_restval").dataset("coco").splits["train"] == ["train", "restval"]
