"""What the page says: its terms, its captions, and what a printed cell says."""

from __future__ import annotations

import html
import re

import pytest

from benchmark.studies.report_page import Cell, Grid, name_parts, page
from tests.benchmark.studies.test_report import content


def plain(text: str) -> str:
    """Return what a reader sees of a page, in one line."""
    text = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", "", text)).split())


def test_every_term_is_defined_before_it_is_used():
    text = plain(page(content(lead=[], title="Report", facts=[("Scale", "pocket")])))
    for name, meaning in {
        "AS": "AS: mean score over the source sets", "AT": "AT: score on the target",
        "H": "H: their harmonic mean, 2 AS AT / (AS + AT)", "O": "O: their arithmetic mean, (AS + AT) / 2",
        "PID": "PID (parameter importance discrepancy): 1 / cos² of the angle",
    }.items():
        assert meaning in text, name
        assert text.index(meaning) == re.search(rf"(?<!\w){name}(?!\w)", text).start(), name


def test_masks_are_described_as_the_methods_log_them():
    text = plain(page(content()))
    assert "mask = 1, share that may change" not in text
    assert "share with M = 1, which keep their change whole" in text and "SPIDER's mask is soft" in text


def test_the_summary_comes_first_and_the_rest_is_folded():
    text = page(content())
    order = ("summary-head", "main", "claims-part", "table0-part", "cells-part")
    places = [text.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    assert "<details open" not in text and not re.search(r"<details[^>]* open", text)
    alone = page(content(tables=[], main=0))
    assert re.search(r'<details class="part" id="group0-part" open>', alone) and 'id="main"' not in alone


@pytest.mark.parametrize(("name", "kind", "rest"), [
    ("fig4_llava_coco", "fig4", "llava_coco"), ("fig4-full_ft+spider_llava_coco", "fig4", "full_ft+spider_llava_coco"),
    ("fig5", "fig5", ""), ("forgetting-models", "forgetting", "models"), ("mine", "mine", ""), ("_x", "", "x"),
])
def test_a_figures_name_ends_at_the_first_dash_or_underscore(name, kind, rest):
    assert name_parts(name) == (kind, rest)


def test_a_slice_of_a_figure_is_called_one():
    text = page(content(figures=[("fig4-spider_llava_coco", b""), ("fig4_llava_coco", b""), ("epochs_mine", b"")]))
    captions = [plain(one) for one in re.findall("<figcaption>(.*?)<small>", text, re.DOTALL)]
    assert captions[0].startswith("A slice of: Fig. 4. ") and captions[0].endswith("intervals. spider_llava_coco")
    assert captions[1].startswith("Fig. 4. ") and captions[2] == "epochs_mine"


def test_a_cell_without_a_number_sorts_as_none():
    assert Cell("-").sort is None and Cell("-", float("nan")).sort is None and Cell("5", 5).sort == "5.0"
    assert Grid("x", ["a", "b"], [[Cell("m", css=""), Cell("1", 1.0)]]).columns == [("a", ""), ("b", "n")]
