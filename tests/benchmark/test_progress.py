"""Time left comes from measured steps once there are some, and is never 0 while work remains."""

from __future__ import annotations

import pytest

from benchmark import progress
from benchmark.progress import Clock


@pytest.fixture
def now(monkeypatch):
    value = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: value[0])
    return value


def test_a_training_longer_than_the_guess_is_estimated_from_its_steps(now):
    clock = Clock()
    clock.begin({"a": 10.0})
    clock.start("a")
    clock.step("a", "train", 1, 101)
    now[0] += 50
    clock.step("a", "train", 11, 101)  # 5 seconds a step, 90 to go, and the guess is over
    assert clock.left == pytest.approx(450)
    now[0] += 5
    assert clock.left == pytest.approx(445)
    clock.stop("a")
    assert clock.left == 0


def test_work_that_remains_is_never_no_time(now):
    clock = Clock()
    clock.begin({"a": 10.0})
    clock.start("a")
    now[0] += 500
    assert clock.left > 0


def test_a_resumed_training_and_a_new_stage_start_their_own_measurement(now):
    clock = Clock()
    clock.begin({"a": 1.0})
    clock.start("a")
    clock.step("a", "train", 900, 1000)
    now[0] += 10
    clock.step("a", "train", 910, 1000)
    assert clock.left == pytest.approx(90)
    clock.step("a", "generate", 0, 10)
    now[0] += 4
    clock.step("a", "generate", 2, 10)
    assert clock.left == pytest.approx(16)
