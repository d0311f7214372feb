"""The examples of Fig. 3 are chosen by the printed rule."""

from __future__ import annotations

from benchmark.studies.examples import choose


def test_the_rule_takes_quantiles_of_the_difference_with_ties_by_id():
    full_ft = {f"i{k}": 0.5 for k in range(9)}
    spider = {**full_ft, "i0": 1.0, "i8": 0.0}
    chosen = choose({"full_ft": full_ft, "spider": spider}, sorted(full_ft))
    # In order: i8 (-0.5), i1 .. i7 (0), i0 (+0.5).
    assert chosen == ["i8", "i2", "i4", "i6", "i0"]
    assert choose({"full_ft": full_ft, "spider": spider}, ["i3"]) == ["i3"]
    assert choose({"full_ft": full_ft, "spider": spider}, []) == []
