"""How a batch is shared among the processes of pretraining."""

from __future__ import annotations

import pytest

from benchmark.pocket.pretrain import group

COSTS = [900, 100, 120, 110, 400, 300, 105, 95]


def shares(monkeypatch: pytest.MonkeyPatch, processes: int, *how) -> list[list[int]]:
    found = []
    for rank in range(processes):
        monkeypatch.setattr(group, "place", lambda rank=rank: (rank, processes))
        found.append(group.share(range(len(COSTS)), *how))
    return found


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_item_is_in_one_share_in_order(monkeypatch, processes):
    for how in ((), (COSTS.__getitem__,)):
        parts = shares(monkeypatch, processes, *how)
        assert sorted(sum(parts, [])) == list(range(len(COSTS))) and all(part == sorted(part) for part in parts)


def test_without_costs_a_process_gets_every_nth(monkeypatch):
    assert shares(monkeypatch, 3) == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_shares_cost_about_the_same(monkeypatch):
    loads = [sum(COSTS[item] for item in part) for part in shares(monkeypatch, 2, COSTS.__getitem__)]
    plain = [sum(COSTS[item] for item in part) for part in shares(monkeypatch, 2)]
    assert max(loads) < 1.1 * min(loads) and max(plain) > 2 * min(plain)
