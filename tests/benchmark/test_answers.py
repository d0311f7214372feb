"""Answers are the same read plain or packed; a damaged file is one message."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmark.answers import pack, read_answers
from benchmark.errors import UserError
from benchmark.scores import write_items
from eval.score import ItemScore

TEXTS = {"b": "x\u2028y \U0001f600", "a": "", "c": '"\\'}


@pytest.fixture
def cell(tmp_path):
    (tmp_path / "answers").mkdir()
    lines = [json.dumps({"item_id": name, "text": text, "n_tokens": 1}) for name, text in TEXTS.items()]
    (tmp_path / "answers" / "gqa.jsonl").write_text("\n".join(lines) + "\n")
    write_items(tmp_path / "items" / "gqa.jsonl.gz", [ItemScore(name, name, 1.0, "") for name in "abc"])
    return tmp_path


def test_packed_answers_are_those_of_the_run_whatever_their_order(cell):
    packed = pack(cell, "gqa")
    assert read_answers(cell, "gqa") == TEXTS
    (cell / "answers" / "gqa.jsonl").unlink()
    (cell / "answers" / "gqa.jsonl.gz").write_bytes(packed)
    assert read_answers(cell, "gqa") == TEXTS and pack(cell, "gqa") == packed
    (cell / "answers" / "gqa.jsonl").write_text(json.dumps({"item_id": "a", "text": "y"}) + "\n")
    assert read_answers(cell, "gqa") == {"a": "y"}  # the run's own file has the last word
    (cell / "answers" / "gqa.jsonl").write_text("{")
    with pytest.raises(UserError, match="Cannot read the answers"):
        read_answers(cell, "gqa")


@pytest.mark.parametrize("lines", ['"x"\n', '"x"\n"y"\n3\n', '"x"\n"y"\n"z"\n"w"\n', "{"])
def test_damaged_answers_are_one_message(cell, lines):
    (cell / "answers" / "gqa.jsonl").unlink()
    (cell / "answers" / "gqa.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(UserError, match="Cannot read the answers"):
        read_answers(cell, "gqa")
    with pytest.raises(UserError, match="Cannot read the answers"):
        read_answers(cell, "okvqa")


def test_a_file_with_a_wrong_byte_is_one_message_or_read(cell):
    packed = bytearray(pack(cell, "gqa"))
    (cell / "answers" / "gqa.jsonl").unlink()
    refused = 0
    for place in range(len(packed)):
        spoilt = packed.copy()
        spoilt[place] ^= 0xFF
        (cell / "answers" / "gqa.jsonl.gz").write_bytes(spoilt)
        try:
            read_answers(cell, "gqa")
        except UserError:
            refused += 1
    assert refused > len(packed) // 2


def test_an_item_without_an_answer_is_not_packed(cell):
    (cell / "answers" / "gqa.jsonl").write_text(json.dumps({"item_id": "a", "text": ""}))
    with pytest.raises(UserError, match="no answer of gqa to item b"):
        pack(cell, "gqa")
