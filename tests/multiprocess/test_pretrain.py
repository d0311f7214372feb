"""Pretraining in two processes: the weights of one, and one clear message if a process ends early."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from benchmark.config.request import request
from benchmark.core import signals
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.pocket.pretrain import group, language, projector, run, tower
from benchmark.pocket.pretrain.qwen import Qwen
from benchmark.pocket.pretrain.stages import RECIPES, STAGES
from benchmark.training.engine import place
from tests.multiprocess.launch import launch

BATCH = 6
TRAINED = ("language", "tower", "names", "reading", "quiz", "pointing", "cells")


def trained(out: Path) -> dict[str, tuple[dict[str, Tensor], list[str]]]:
    """Return the weights and the log of a few steps of each stage, in this process or its group."""
    prompts = {name: dataset.prompt for name, dataset in request(["table=table5"], grid=False).datasets.items()}
    family = Qwen(56)
    tokenizer = family.make_tokenizer(prompts)
    found = {}
    for stage in TRAINED:
        torch.manual_seed(0)
        model = family.make_llm(tokenizer) if stage == "language" else family.make_model(tokenizer)
        log: list[str] = []
        if stage == "language":
            language.train_language(model, tokenizer, out / stage, 2, 0, log.append, BATCH, 32, dtype=family.dtype)
        elif stage == "tower":
            with mock.patch.object(tower, "probe", return_value={}):
                tower.train(family.modules(model).tower, family, out / stage, 2, 0, BATCH, log=log.append)
        elif stage == "names":
            projector.train_names(language.Parts(model, family), tokenizer, out / stage, 2, 0, log.append, BATCH)
        else:
            # So many texts that one process may have no picture.
            changed = replace(STAGES[stage], pictures=BATCH, mixture={**STAGES[stage].mixture, "text": 120})
            language.train_joint(model, tokenizer, family, out / stage, changed, 3, 0, prompts, log.append)
        found[stage] = dict(model.state_dict()), log
    return found


def test_two_processes_train_what_one_trains(tmp_path):
    alone, (first, second) = trained(tmp_path / "alone"), launch(trained, 2, tmp_path / "several")
    for stage in TRAINED:
        (wanted, log), (weights, first_log), (others, _) = alone[stage], first[stage], second[stage]
        assert log and log == first_log, stage
        for name, weight in wanted.items():
            assert torch.allclose(weights[name], weight, atol=2e-5), (stage, name)
            assert torch.equal(weights[name], others[name]), (stage, name)
        assert [path.name for path in (tmp_path / "several" / stage).iterdir()] == ["checkpoint.pt"]


def everywhere(folder: Path) -> None:
    """Write what each process of a group is."""
    write_atomic(folder / str(place()[0]), f"{group.total(1):.0f} {torch.get_num_threads()}")


def one_refuses() -> None:
    """Raise a user's mistake in one process, while the other waits for it."""
    if not group.is_first():
        raise UserError("No space is left.")
    group.total(0)


def one_dies() -> None:
    """Kill one process, while the other waits for it."""
    if not group.is_first():
        os.kill(os.getpid(), signal.SIGKILL)
    group.total(0)


def test_every_process_of_a_group_has_one_thread(tmp_path):
    group.run(everywhere, (tmp_path,), 2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2 1", "1": "2 1"}


@pytest.mark.parametrize(("function", "said"), [(one_refuses, "^No space is left.$"), (one_dies, "was killed")])
def test_a_process_that_ends_early_ends_all_with_one_message(function, said):
    with pytest.raises(UserError, match=said):
        group.run(function, (), 2)


def waits(folder: Path) -> None:
    """Write that this process is there, and wait."""
    write_atomic(folder / str(place()[0]), str(os.getpid()))
    time.sleep(600)


@pytest.mark.parametrize(("number", "raised"), [
    (signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, signals.Terminated),
])
def test_a_signal_ends_all_processes(tmp_path, number, raised):
    def stop() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(raised), signals.raising():
        group.run(waits, (tmp_path,), 2)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_no_process_is_left_without_pictures():
    for recipe in RECIPES.values():
        family = run.FAMILIES[recipe.family]
        assert all((stage.pictures or family.batch) >= family.batch for stage in STAGES.values())
        assert family.tower_batch >= family.batch
