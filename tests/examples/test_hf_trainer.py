"""The example of transformers' Trainer: SPIDER gives the weights of the float64 reference, and logs its numbers."""

from __future__ import annotations

import copy

from examples.hf_trainer import make_trainer
from tests.examples import loop


def test_spider_gives_the_weights_of_the_reference(tmp_path):
    trainer = make_trainer("spider", str(tmp_path))
    base, batches = copy.deepcopy(trainer.model), loop.recorded(trainer)
    trainer.train()
    expected = loop.spider(
        base, batches[: loop.STEPS], lambda model, batch: model(**batch).loss,
        rates=lambda step: 1e-3 * (1 - step / loop.STEPS), clip=1.0,  # the Trainer's linear schedule and clipping
    )
    loop.agrees(loop.weights_of(trainer.model), expected, loop.weights_of(base))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[-1]["step"] == 20 and 0.3 < rows[-1]["spider/restored_fraction"] < 0.7
    assert all(key.count("/") == key.startswith("spider/") for row in rows for key in row)
