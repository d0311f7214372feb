"""The example of TRL's SFTTrainer on a vision-language model: SPIDER gives the weights of the float64 reference."""

from __future__ import annotations

import copy

import pytest

from examples.trl_sft import make_trainer
from tests.examples import loop


@pytest.mark.slow
def test_spider_gives_the_weights_of_the_reference(tmp_path):
    trainer = make_trainer("spider", str(tmp_path))
    base, batches = copy.deepcopy(trainer.model), loop.recorded(trainer)
    del base.forward  # SFTTrainer puts its own there, which would run the original
    trainer.train()
    assert len(batches) >= loop.STEPS and all(batch["pixel_values"].abs().sum() > 0 for batch in batches)
    expected = loop.spider(
        base, batches[: loop.STEPS], lambda model, batch: model(**batch).loss,
        rates=lambda step: 1e-3 * (1 - step / loop.STEPS), clip=1.0,
    )
    loop.agrees(loop.weights_of(trainer.model), expected, loop.weights_of(base))
    assert trainer.state.global_step == loop.STEPS
    assert any("vision_tower" in name for name in expected) and any("projector" in name for name in expected)
