"""When one process dies or hangs, the others stop with a message instead of waiting for ever."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

from benchmark.training.fragments import find_layout
from methods.registry import build
from tests.multiprocess.launch import Failed, launch
from tests.multiprocess.training import Data, Training

MESSAGE = "Process 0 waited too long for the others: one of them stopped or hangs"
PATIENCE = 10.0  # seconds that a process waits for another one, in the test where that hangs


def trouble(folder: Path, engine: str, where: str, what: str) -> None:
    """Train SPIDER; process 1 dies or hangs in the second step: in the method's hook, or before the forward pass."""
    method = build("spider", {}, 0)
    training = Training(Data.read(folder), engine, method)
    # Groups that DeepSpeed and FSDP2 make have torch's own patience, 30 minutes with gloo.
    group = find_layout(training.optimizer).group
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=PATIENCE), group)
    training.step(0)

    def stop(*_: object) -> None:
        if training.rank == 1:
            if what == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

    if where == "hook":
        method.before_step = stop
    else:
        stop()
    training.step(1)


@pytest.mark.parametrize(("engine", "where"), [
    ("zero2", "hook"), ("zero2", "forward"), ("zero3", "hook"), ("zero3", "forward"), ("fsdp2", "hook"),
])
def test_a_process_dies(folder, engine, where):
    with pytest.raises(Failed) as caught:
        launch(trouble, 2, folder, engine, where, "dies")
    survivor, dead = caught.value.errors[0], caught.value.errors[1]
    assert dead.startswith("exit -9") and survivor.startswith("exit 1\n"), caught.value
    assert "by peer" in survivor  # gloo: connection closed or reset by peer
    assert caught.value.seconds < 120, "at once, not after the 600 s that it may wait for one that lives"
    if where == "hook":
        assert MESSAGE in survivor


def test_a_process_hangs(folder):
    with pytest.raises(Failed) as caught:
        launch(trouble, 2, folder, "zero2", "hook", "hangs", patience=PATIENCE, grace=0)
    survivor, late = caught.value.errors[0], caught.value.errors[1]
    assert late.startswith("still running") and survivor.startswith("exit 1\n"), caught.value
    assert MESSAGE in survivor
    assert PATIENCE < caught.value.seconds < 120
