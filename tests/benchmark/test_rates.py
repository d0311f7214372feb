"""The rate is chosen on Full FT alone, and what was fixed then is not written anew beside other methods."""

from __future__ import annotations

import pytest

from benchmark import cli, rates
from tests.benchmark import fakes


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "TARGETS", "iconqa")  # needs no Java
    monkeypatch.setattr(rates.Digests, "records", lambda *_: "0" * 64)  # of sets that are not drawn here
    return fakes.world_in(tmp_path, monkeypatch)


def test_the_protocol_is_written_by_the_grid_of_full_ft_alone(world, capsys):
    own = [item for item in world.overrides() if not item.startswith(("table=", "targets=", "method"))]
    assert cli.main(["rates", *own]) == 0
    path = world.results / "rates" / "protocol.md"
    before = path.read_text()
    assert "Fixed before any method but Full FT was run" in before and before.count("(chosen)") == 1
    assert cli.main(["rates", "methods=full_ft,spider", *own]) == 0
    assert path.read_text() == before and "| spider |" in capsys.readouterr().out
    assert "spider" in (world.results / "rates" / "llava_pocket.csv").read_text()


def test_of_the_rates_within_one_standard_error_the_smallest_is_chosen():
    def point(rate, a_t):
        return rates.Point("full_ft", rate, {"A_S": 80.0, "A_T": a_t, "H": 80.0}, 3.0)

    assert rates.choose([point(1e-4, 96.9), point(5e-4, 97.1), point(2e-3, 100.0)]) == 5e-4
