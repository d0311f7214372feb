"""SIGTERM and SIGUSR1 end any command with exit code 75, once; none is lost."""

from __future__ import annotations

import json
import os
import signal

import pytest

from benchmark import cli
from benchmark.core import signals
from tests.benchmark import fakes


@pytest.mark.parametrize("number", signals.PREEMPTING)
def test_the_first_signal_raises_and_later_ones_do_not_disturb_the_cleaning_up(number):
    before = signal.getsignal(number)
    cleaned = []
    with pytest.raises(signals.Terminated), signals.raising():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            cleaned.append(True)
    assert cleaned and signal.getsignal(number) == before


def test_a_dying_reader_does_not_disturb_what_handles_the_error(monkeypatch):
    """torch's handler raises at any later moment, and a training failed with a traceback instead of the reason."""
    def dies(*_):
        raise RuntimeError("a reader died")

    monkeypatch.setattr(signals, "_of_children", [])
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(EOFError), signals.children_watched():
        signal.signal(signal.SIGCHLD, dies)
        raise EOFError
    signal.raise_signal(signal.SIGCHLD)
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(RuntimeError, match="a reader died"), signals.children_watched():  # torch sets it only once
        signal.raise_signal(signal.SIGCHLD)
    signal.raise_signal(signal.SIGCHLD)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_destructor_swallows_is_raised_by_the_next_check():
    class Swallows:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with signals.raising():
        Swallows()
        with pytest.raises(signals.Terminated):
            signals.check()
    with signals.raising():
        signals.check()  # forgotten: that was another run


@pytest.mark.parametrize("number", signals.PREEMPTING)
def test_every_command_ends_with_75(monkeypatch, capsys, number):
    monkeypatch.setitem(cli.VERBS, "list", lambda arguments: os.kill(os.getpid(), number))
    assert cli.main(["list"]) == 75
    assert "The same command goes on" in capsys.readouterr().err


@pytest.mark.slow
def test_sigusr1_in_a_cell_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    world = fakes.world_in(tmp_path, monkeypatch)
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    monkeypatch.setenv(fakes.TROUBLE, "train spider=usr1")
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 75
    assert "Finished cells (1) are kept" in capsys.readouterr().out
    spider = world.cells()["llava_pocket-iconqa-spider-s0"]
    assert json.loads((spider / "status.json").read_text())["state"] == "interrupted"
    monkeypatch.setenv(fakes.TROUBLE, "")
    world.forget_calls()
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert [line.split()[2] for line in fakes.calls() if line.startswith("train")] == ["spider"]
