"""IconQA choose_txt: official files to records."""

from __future__ import annotations

import json

import pytest

from benchmark.core.errors import UserError
from benchmark.data import load


def test_records(iconqa, spec_of):
    (record,) = load(spec_of("iconqa"), iconqa, "test")
    assert record.prompt == "What is the shape?\nA. circle\nB. square\nC. 2"
    assert record.target == "B" and record.references == ("B",)
    assert record.options == ("circle", "square", "2")
    assert record.item_id == record.group == "35254"
    assert record.image == (
        iconqa / "iconqa" / "iconqa_data" / "iconqa" / "test" / "choose_txt" / "35254" / "image.png"
    )
    assert record.meta["question_type"] == "choose_txt" and record.meta["gold"] == "B"


def test_the_form_of_the_target_is_an_option(iconqa, spec_of):
    (record,) = load(spec_of("iconqa", options={"target_format": "Answer: {letter}"}), iconqa, "test")
    assert record.target == "Answer: B" and record.references == ("Answer: B",) and record.meta["gold"] == "B"
    with pytest.raises(UserError, match=r"target_format '\{lettre\}' of iconqa is not a valid template"):
        load(spec_of("iconqa", options={"target_format": "{lettre}"}), iconqa, "test")


@pytest.mark.parametrize("answer", [3, -1, "B"])
def test_an_answer_that_is_no_option(iconqa, spec_of, answer):
    path = iconqa / "iconqa" / "iconqa_data" / "problems.json"
    problems = json.loads(path.read_text())
    problems["35254"]["answer"] = answer
    path.write_text(json.dumps(problems))
    with pytest.raises(UserError, match=f"problem 35254 has answer {answer!r} but 3 choices"):
        load(spec_of("iconqa"), iconqa, "test")


def test_a_problem_that_the_split_names_but_the_file_lacks(iconqa, spec_of):
    path = iconqa / "iconqa" / "iconqa_data" / "pid_splits.json"
    path.write_text('{"choose_txt_test": ["35254", "9"]}')
    with pytest.raises(UserError, match="lacks the key '9'"):
        load(spec_of("iconqa"), iconqa, "test")
