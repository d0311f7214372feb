"""The examples of Fig. 3 are chosen by the printed rule."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmark.errors import UserError
from benchmark.gallery import choose, read_answers


def test_the_rule_takes_quantiles_of_the_difference_with_ties_by_id():
    full_ft = {f"i{k}": 0.5 for k in range(9)}
    spider = {**full_ft, "i0": 1.0, "i8": 0.0}
    chosen = choose({"full_ft": full_ft, "spider": spider}, sorted(full_ft))
    # In order: i8 (-0.5), i1 .. i7 (0), i0 (+0.5).
    assert chosen == ["i8", "i2", "i4", "i6", "i0"]
    assert choose({"full_ft": full_ft, "spider": spider}, ["i3"]) == ["i3"]
    assert choose({"full_ft": full_ft, "spider": spider}, []) == []


def test_answers_are_read_plain_or_packed(tmp_path):
    (tmp_path / "answers").mkdir()
    line = json.dumps({"item_id": "a", "text": "x"}) + "\n"
    (tmp_path / "answers" / "gqa.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert read_answers(tmp_path, "gqa") == {"a": "x"}
    (tmp_path / "answers" / "gqa.jsonl").write_text(line.replace(chr(34) + "x", chr(34) + "y"))
    assert read_answers(tmp_path, "gqa") == {"a": "y"}
    (tmp_path / "answers" / "gqa.jsonl").write_text("{")
    for name in ("gqa", "okvqa"):
        with pytest.raises(UserError, match="Cannot read the answers"):
            read_answers(tmp_path, name)
