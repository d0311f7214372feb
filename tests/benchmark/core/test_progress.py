"""Time left comes from measured steps once there are some, and is never 0 while work remains."""

from __future__ import annotations

import io
import re

import pytest

from benchmark.core import progress
from benchmark.core.progress import Bars, Clock, Lines, long_work


@pytest.fixture
def now(monkeypatch):
    value = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: value[0])
    return value


def test_a_training_longer_than_the_guess_is_estimated_from_its_steps(now):
    clock = Clock()
    clock.begin({"a": {"train": 10.0}})
    clock.start("a")
    clock.step("a", "train", 1, 101)
    now[0] += 50
    clock.step("a", "train", 11, 101)  # 5 seconds a step, 90 to go, and the guess is over
    assert clock.left == pytest.approx(450)
    now[0] += 5
    assert clock.left == pytest.approx(445)
    clock.stop("a")
    assert clock.left == 0


@pytest.mark.parametrize("guess", [1000.0, 60.0])
def test_the_pace_of_the_first_training_corrects_what_is_expected_of_all(now, guess):
    """Twenty cells of 100 s training and 20 s answers, expected wrongly by any factor."""
    clock = Clock()
    clock.begin({f"cell {number}": {"train": guess, "generate/coco": guess / 5} for number in range(20)})
    clock.start("cell 0")
    clock.step("cell 0", "train: images", 1, 2)
    clock.step("cell 0", "train", 1, 101)
    now[0] += 5
    clock.step("cell 0", "train", 6, 101)
    assert clock.left == pytest.approx(20 * 120, rel=0.02)
    now[0] += 95
    clock.step("cell 0", "train", 101, 101)
    assert clock.left == pytest.approx(19 * 120 + 20, rel=0.02)


def test_work_that_remains_is_never_no_time(now):
    clock = Clock()
    clock.begin({"a": {"train": 10.0}})
    clock.start("a")
    now[0] += 9.9
    assert clock.left > 0 and clock.left_text == ", 1 s left"
    now[0] += 500  # no stage is measured: nothing is known, so nothing is said
    assert clock.left is None and clock.left_text == ""
    clock.stop("a")
    assert clock.left == 0 and clock.left_text == ""


def test_a_resumed_training_and_a_new_stage_start_their_own_measurement(now):
    clock = Clock()
    clock.begin({"a": {"train": 1.0}})
    clock.start("a")
    clock.step("a", "train", 900, 1000)
    now[0] += 10
    clock.step("a", "train", 910, 1000)
    assert clock.left == pytest.approx(90)
    clock.step("a", "generate", 0, 10)
    now[0] += 4
    clock.step("a", "generate", 2, 10)
    assert clock.left == pytest.approx(16)


def test_a_resumed_training_is_measured_from_its_first_step_here(now):
    """As the worker reports: a stage that begins, 0 of 1, then the first step of this process."""
    clock = Clock()
    clock.begin({"a": {"train": 1.0}})
    clock.start("a")
    clock.step("a", "train", 0, 1)
    now[0] += 10
    clock.step("a", "train", 901, 1000)
    now[0] += 10
    clock.step("a", "train", 902, 1000)
    assert clock.left == pytest.approx(980)


def test_features_that_outlast_the_guess_and_a_training_after_them_leave_time(now):
    """The line names image and step, and never says that no time is left."""
    stream = io.StringIO()
    show = Lines(stream=stream)
    show.begin({"a": {"train": 60.0}})
    show.cell("a")
    show.step("a", "train", 0, 1)
    for done in range(500, 10_001, 500):
        now[0] += 20
        show.step("a", "train: images", done, 10_000)
    for done in range(1, 101):
        now[0] += 20
        show.step("a", "train", done, 100, "loss 1.000")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[40 s, 7 min left] a: train: images 1,000/10,000"
    assert lines[-1] == "[40 min] a: train 100/100 loss 1.000"
    lefts = {line: re.fullmatch(r"\[.*, (\d+) (s|min) left\] .*", line) for line in lines}
    assert all(int(left[1]) > 0 for left in lefts.values() if left)
    # Only after the last step nothing is known.
    silent = [line.partition("a: ")[2] for line, left in lefts.items() if not left]
    assert len(lines) == 60 and silent == ["train 100/100 loss 1.000"]


def test_a_long_piece_of_work_says_a_line_now_and_then_and_a_short_one_none(now, capsys):
    slow = [
        "[30 s, 2 min left] verify: cells 3/12", "[60 s, 60 s left] verify: cells 6/12",
        "[2 min, 30 s left] verify: cells 9/12",
    ]
    for seconds, expected in ((1, []), (10, slow)):
        with long_work("verify") as told:
            for done in range(12):
                told("cells", done, 12)
                now[0] += seconds
        assert capsys.readouterr().out.splitlines() == expected


def test_a_terminal_gets_one_bar_with_the_stage_and_the_time(now, monkeypatch, capsys):
    made = []

    def bars(**how: bool) -> Bars:
        made.append(Bars(**how))
        return made[-1]

    monkeypatch.setattr(progress, "progress", bars)
    with long_work("audit") as told:
        told("images", 0, 1234)
        now[0] += 10
        told("images", 617, 1234)
        shown = [task for task in made[0]._bars.tasks if task.visible]
        assert [(task.description, task.completed, task.total) for task in shown] == [("audit", 617, 1234)]
        assert shown[0].fields["text"] == "images  10 s elapsed, 10 s left"
        assert made[0]._bars.live.is_started
    assert not made[0]._bars.live.is_started


def test_a_cell_that_begins_again_has_one_bar(now):
    show = Bars()
    show.begin({"a": {}})
    for _ in range(3):  # another process holds it
        show.cell("a")
    assert [task.description for task in show._bars.tasks] == ["cells", "a"]
    show.end()


def test_work_that_fails_leaves_no_bar_behind(monkeypatch):
    made = []

    def bars(**how: bool) -> Bars:
        made.append(Bars(**how))
        return made[-1]

    monkeypatch.setattr(progress, "progress", bars)
    with pytest.raises(OSError), long_work("audit") as told:
        told("images", 1, 2)
        raise OSError
    assert not made[0]._bars.live.is_started


def test_a_run_of_one_cell_keeps_the_bar_that_has_the_time(now):
    """A cell's name is long: on a terminal of 80 columns nothing fits behind its stage."""
    show = Bars()
    show.begin({"a": {"train": 60.0}})
    show.cell("a")
    show.step("a", "train", 0, 10)
    try:
        shown = {task.description: task.fields["text"] for task in show._bars.tasks if task.visible}
        assert shown == {"cells": "0 s elapsed, 60 s left", "a": "train"}
    finally:
        show.end()
