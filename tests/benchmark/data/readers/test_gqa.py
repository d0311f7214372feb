"""GQA: official files to records."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.data import load


def test_records(gqa, spec_of):
    weather, dress = load(spec_of("gqa"), gqa, "test")
    assert weather.prompt == "Is it overcast?\nAnswer the question using a single word or phrase."
    assert weather.item_id == "201307251" and weather.group == dress.group == "n161313"
    assert weather.target == "no" and weather.references == ("no",)
    assert weather.image == gqa / "gqa" / "images" / "n161313.jpg"
    assert dress.meta == {
        "question": "Who wears the dress?", "question_type": "relS", "structural": "query", "semantic": "rel",
        "detailed": "relS", "question_id": "201640614", "image_id": "n161313",
    }


@pytest.mark.parametrize(("key", "kind"), [("structural", "verify"), ("semantic", "global")])
def test_the_type_that_is_scored_is_an_option(gqa, spec_of, key, kind):
    assert load(spec_of("gqa", options={"type_key": key}), gqa, "test")[0].meta["question_type"] == kind


def test_an_unknown_type_key_is_named(gqa, spec_of):
    with pytest.raises(UserError, match="types of question 201307251 lacks the key 'colour'"):
        load(spec_of("gqa", options={"type_key": "colour"}), gqa, "test")
