from decimal import Decimal

import pytest

from eval.averages import a_s, h_average, o_average


def test_paper_example_vila_flickr30k_full_ft():
    source = a_s([37.99, 45.17, 53.85, 51.14])
    assert source == pytest.approx(47.0375)
    assert h_average(source, 66.68) == pytest.approx(55.16232, abs=1e-5)
    assert o_average(source, 66.68) == pytest.approx(56.85875)


def test_zero_source_and_target_give_zero():
    assert h_average(0.0, 0.0) == 0
    assert h_average(0.0, 80.0) == 0


def test_h_uses_the_unrounded_source():
    """VILA, Flickr30k, Half FT: the paper prints H = 59.52; with A^S rounded to 51.68 it would be 59.51."""
    source = a_s([Decimal("44.15"), Decimal("48.71"), Decimal("60.90"), Decimal("52.97")])
    assert source == Decimal("51.6825")
    assert f"{h_average(source, Decimal('70.15')):.2f}" == "59.52"
    assert f"{h_average(Decimal('51.68'), Decimal('70.15')):.2f}" == "59.51"


def test_no_upstream_value_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        a_s([])
