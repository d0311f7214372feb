from decimal import ROUND_HALF_UP, Decimal

import pytest

from benchmark.core.errors import UserError
from benchmark.paper import numbers
from eval.averages import a_s, h_average, o_average

UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")


def rows() -> list[tuple[str, dict[str, Decimal]]]:
    """Return (row name, printed values by metric) for the rows of Tables 5 and 6."""
    found = []
    for table in numbers.RESULT_TABLES:
        for key, group in numbers.load(table).groupby(["model", "target", "method"], sort=False):
            values = {metric: Decimal(value) for metric, value in zip(group.metric, group.value, strict=True)}
            found.append((" ".join(key), values))
    return found


def source_of(values: dict[str, Decimal]) -> Decimal:
    return a_s([values[dataset] for dataset in UPSTREAM])


def printed(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.01"), ROUND_HALF_UP)


def test_there_are_44_rows():
    assert len(rows()) == 44


@pytest.mark.parametrize(("name", "values"), rows(), ids=[name for name, _ in rows()])
def test_summaries_recomputed_from_the_cells_are_those_printed(name, values):
    source = source_of(values)
    assert printed(source) == values["A_S"]
    assert printed(h_average(source, values["A_T"])) == values["H"]
    assert printed(o_average(source, values["A_T"])) == values["O"]


def test_rounding_the_source_first_would_miss_nine_rows():
    missed = [
        name
        for name, values in rows()
        if printed(h_average(printed(source_of(values)), values["A_T"])) != values["H"]
    ]
    assert len(missed) == 9


def test_table_2_repeats_h_of_table_5():
    table = numbers.load("table2")
    assert len(table) == 7
    for method, value in zip(table.method, table.H_vila_flickr30k, strict=True):
        assert numbers.lookup("vila1.5-3b", "flickr30k", method, "H").value == float(value)


@pytest.mark.parametrize("table", ["table3", "table4"])
def test_h_of_the_ablations_follows_from_printed_averages_within_rounding(table):
    rows = numbers.load(table)
    assert len(rows) in (8, 10)
    for source, target, h in zip(rows.A_S, rows.A_T, rows.H, strict=True):
        assert h_average(float(source), float(target)) == pytest.approx(float(h), abs=0.011)


def test_lookup_returns_the_value_and_whether_it_is_suspect():
    assert numbers.lookup("llava-1.5-7b", "coco", "SPIDER", "H") == numbers.Published(73.89, "")
    assert numbers.lookup("llava15_7b", "coco", "SPIDER", "H").value == 73.89
    assert numbers.lookup("another_model", "coco", "SPIDER", "H") is None
    copied = numbers.lookup("vila1.5-3b", "flickr30k", "SPIDER", "textvqa")
    assert copied == numbers.Published(53.38, "duplicate")
    assert numbers.lookup("vila1.5-3b", "flickr30k", "SPIDER", "H").suspect == "duplicate"
    assert numbers.lookup("vila1.5-3b", "flickr30k", "SPIDER", "A_T").suspect == ""
    assert numbers.lookup("llava-1.5-7b", "coco", "L2-Reg", "H") is None


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"table9\.csv"):
        numbers.load("table9")
