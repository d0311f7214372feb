"""The paper's tables against their own arithmetic, and what the audit prints of it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from benchmark import cli
from benchmark.audit import paper_tables as audit
from benchmark.paper import numbers


def test_all_44_rows_agree_and_are_shown_with_their_sums(capsys):
    assert cli.main(["audit", "published"]) == 0
    out = capsys.readouterr().out
    assert "44 of 44 rows agree in A_S, H and O. With A_S rounded first, H agrees in 35." in out
    assert "  A_S = (58.00 + 58.25 + 66.20 + 61.93) / 4 = 61.0950 -> 61.10, printed 61.10 ok" in out
    assert "DIFFERS" not in out and out.count(" ok\n") == 132


def test_a_wrong_cell_is_seen():
    row = audit.rows()[0]
    wrong = audit.Row(row.name, row.cells, {**row.printed, "H": row.printed["H"] + Decimal("0.01")}, row.exact)
    assert row.agrees and not wrong.agrees
    assert "printed 58.27 DIFFERS" in audit.arithmetic(wrong)


def test_copied_cells_are_found_with_their_reason():
    suspect = [twin for twin in audit.twins() if twin.reason]
    assert len(suspect) == 8 and len([twin for twin in suspect if twin.metric == "textvqa"]) == 5
    assert all(twin.model == "vila1.5-3b" for twin in suspect)
    chance = {(twin.metric, twin.value) for twin in audit.twins() if not twin.reason}
    assert ("ocrvqa", "65.55") in chance
    for table in numbers.RESULT_TABLES:
        frame = numbers.load(table)
        assert all(bool(mark) == bool(reason) for mark, reason in zip(frame.suspect, frame.reason, strict=True))


@pytest.mark.parametrize(("name", "n", "cells", "smallest"), [
    ("ocrvqa", 2000, 39, 2000), ("iconqa", 6316, 8, None), ("scienceqa", 4241, 7, 3212), ("gqa", 12578, 36, None),
])
def test_the_digits_name_the_size(name, n, cells, smallest):
    total, found, least = audit.sizes(name)
    assert (total, found[0][0], found[0][2]) == (cells, n, cells)
    assert smallest is None or least == smallest
    others = {size: matched for size, _, matched, chance in found[1:] if chance < 0.99}
    assert all(matched < cells for matched in others.values()) and others


def test_soft_scores_are_not_shares_of_n():
    for name in ("okvqa", "textvqa"):
        total, found, _ = audit.sizes(name)
        assert found[0][2] == 14 < total and "refuted for scores of 0 or 1" in audit.verdict(name, total, found)


@pytest.mark.parametrize(("cell", "size", "fits"), [
    (5000, 2, True), (3333, 3, True), (3334, 3, False), (1, 2000, False), (2, 8000, False), (3, 8000, True),
])
def test_what_k_of_n_prints(cell, size, fits):
    assert audit.fits(cell, size) == fits
    assert fits == any(f"{100 * k / size:.2f}" == f"{cell / 100:.2f}" for k in range(size + 1))
