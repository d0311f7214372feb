"""`python -m benchmark pretrain`: train a shipped small model from scratch, in stages that can be resumed.

The stages are tokenizer, language, tower, names (VILA and Qwen), alignment, reading, covers (Qwen only), matching,
quiz, letters, choices, more_choices (LLaVA only), instruction, authors (Qwen only), pointing, cells (Qwen only) and
final. Each saves its result in build/pretrain/<model>/ and is skipped if it is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

import benchmark.models
from benchmark.config.compose import request
from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import write_atomic
from benchmark.pocket.pretrain import card, language, projector, tower
from benchmark.pocket.pretrain.corpus import (
    ALIGNMENT,
    CELLS,
    CHOICE_STAGE,
    COVERS,
    FINAL,
    LETTER_STAGE,
    MATCHING,
    MIXTURE,
    POINTING,
    READING,
)
from benchmark.pocket.pretrain.family import Family, Part
from benchmark.pocket.pretrain.llama import Llava, Vila
from benchmark.pocket.pretrain.qwen import Qwen
from benchmark.pocket.world.suite import POCKET
from benchmark.spec import ModelSpec, at_root

WORK = at_root("build/pretrain")
TRANSCRIPTS = 16
"""Pictures per step of the stages that teach transcripts."""
FAMILIES: dict[str, type[Family]] = {"llava": Llava, "vila": Vila, "qwen": Qwen}


@dataclass(frozen=True)
class Recipe:
    """Everything but the code that determines a shipped model's weights.

    Args:
        family: a key of FAMILIES.
        image_size: side in pixels of what the tower sees of a square picture; see the family.
        seed: of the weights and the data order.
        language_steps: of 64 texts of 96 tokens; llava and vila share the stage.
        tower_steps: of the family's `tower_batch` of pictures.
        names_steps: of 96 pictures, projector only (four patches per token).
        alignment_steps: of 16 pictures with transcripts of what they show.
        reading_steps: the same with more signs and covers.
        covers_steps: the same with covers for the most part (Qwen reads them late).
        matching_steps: of the family's `batch` of pictures, as below, with look-ups by content.
        quiz_steps: with questions and answers in one text.
        letters_steps: of pictures or texts with lettered options.
        choices_steps: the same with keys that mean an option.
        more_choices_steps: the same, starting again at the full learning rate (LLaVA learns letters later).
        instruction_steps: with all questions of each picture.
        authors_steps: of 16 pictures, covers for the most part, each with its transcript and two questions (Qwen reads
            authors' last names last).
        pointing_steps: of pictures or texts with lettered options and inner labels.
        cells_steps: of pictures with look-ups of places and questions, and each image token's cell as an inner label
            (Qwen does not learn it from the look-ups).
        final_steps: like instruction, with inner labels and more to read.
    """

    family: str
    image_size: int
    seed: int = 0
    language_steps: int = 360
    tower_steps: int = 2500
    names_steps: int = 0
    alignment_steps: int = 600
    reading_steps: int = 900
    covers_steps: int = 0
    matching_steps: int = 1500
    quiz_steps: int = 1200
    letters_steps: int = 700
    choices_steps: int = 1000
    more_choices_steps: int = 0
    instruction_steps: int = 900
    authors_steps: int = 0
    pointing_steps: int = 500
    cells_steps: int = 0
    final_steps: int = 700


RECIPES = {
    "llava_pocket": Recipe("llava", 96, more_choices_steps=700),
    "vila_pocket": Recipe("vila", 112, names_steps=800),
    # For two cores without bfloat16 (about 135 minutes): half the rows in most steps, fewer of most steps. With no more
    # than 97 x 97 pixels a scene shrinks to 84 x 84, so each cell of its grid is one token; a cover stays as drawn.
    "qwen_pocket": Recipe(
        "qwen", 97, language_steps=260, tower_steps=2300, names_steps=400, alignment_steps=1800, reading_steps=2400,
        covers_steps=1400, matching_steps=2000, quiz_steps=1000, letters_steps=300, choices_steps=400,
        instruction_steps=700, authors_steps=800, pointing_steps=500, cells_steps=800, final_steps=500,
    ),
}


def main(argv: Sequence[str]) -> int:
    """Train the models named in argv ('model=llava_pocket'; default: the profile's) and write their checkpoint folders.

    Args:
        argv: Hydra-style overrides.

    Returns:
        Exit code 0.

    Raises:
        UserError: a model has no recipe.
    """
    run = request(["profile=pocket", "table=table5", *argv], grid=False)
    for spec in run.models:
        if spec.id not in RECIPES:
            raise UserError(f"model={spec.id!r} has no pretraining recipe.{did_you_mean(spec.id, RECIPES)}")
    prompts = {name: dataset.prompt for name, dataset in run.datasets.items()}
    torch.set_num_threads(run.threads)
    transformers_logging.set_verbosity_error()
    for spec in run.models:
        recipe = RECIPES[spec.id]
        make(spec, recipe, prompts)
        POCKET.draw(at_root(run.data_root))
        loaded = benchmark.models.load(replace(spec, checkpoint=str(at_root(spec.checkpoint))), torch.float32)
        training = json.loads((loaded.path / "training.json").read_text())
        family = FAMILIES[recipe.family]
        batches = family.tower_batch, TRANSCRIPTS, family.batch
        verdict = card.write(loaded, spec.id, run.datasets, at_root(run.data_root), training, batches)
        _logger(spec.id, WORK / spec.id)(verdict)
    return 0


def make(spec: ModelSpec, recipe: Recipe, prompts: dict[str, str], work: Path = WORK) -> Path:
    """Run all stages of a model and write its checkpoint.

    Args:
        spec: its entry in conf/model.
        recipe: sizes and steps.
        prompts: dataset id -> prompt template.
        work: folder for the results of the stages.

    Returns:
        The checkpoint folder.
    """
    out = work / spec.id
    log = _logger(spec.id, out)
    family = FAMILIES[recipe.family](recipe.image_size)
    tokenizer = family.make_tokenizer(prompts)
    llm = make_llm(family, tokenizer, recipe, work / family.language_folder, log)
    vision_tower = make_tower(family, recipe.seed)
    probe = tower.train(vision_tower, family, out / "tower", recipe.tower_steps, recipe.seed, log=log)
    weak = {name: round(value) for name, value in probe.items() if name.startswith("icon/") and value < 90}
    shown = json.dumps({name: round(value, 1) for name, value in probe.items() if "/" not in name})
    log(f"tower probe {shown}; icons below 90 %: {weak or 'none'}")
    model = assemble(family, tokenizer, llm, vision_tower, recipe.seed)
    parts = language.Parts(model, family)
    projector.condition(parts, recipe.seed)
    projector.train_names(parts, tokenizer, out / "names", recipe.names_steps, recipe.seed, log)
    stages: list[tuple[str, int, dict[str, int], float, dict[str, Any]]] = [
        ("alignment", recipe.alignment_steps, ALIGNMENT, 2e-3, {"batch": TRANSCRIPTS}),
        ("reading", recipe.reading_steps, READING, 2e-3, {"batch": TRANSCRIPTS}),
        ("covers", recipe.covers_steps, COVERS, 2e-3, {"batch": TRANSCRIPTS}),
        ("matching", recipe.matching_steps, MATCHING, 1e-3, {"horizon": 3000}),
        ("quiz", recipe.quiz_steps, MATCHING, 1e-3, {"horizon": 1600}),
        ("letters", recipe.letters_steps, LETTER_STAGE, 1e-3, {"horizon": 1200}),
        ("choices", recipe.choices_steps, CHOICE_STAGE, 1e-3, {"horizon": 1500}),
        ("more_choices", recipe.more_choices_steps, CHOICE_STAGE, 1e-3, {"horizon": 1200}),
        ("instruction", recipe.instruction_steps, MIXTURE, 1e-3, {"horizon": 1300, "cooldown": 250}),
        ("authors", recipe.authors_steps, COVERS, 2e-3, {"batch": TRANSCRIPTS}),
        ("pointing", recipe.pointing_steps, POINTING, 1e-3, {"horizon": 1600, "inner": True}),
        ("cells", recipe.cells_steps, CELLS, 1e-3, {"horizon": 1600, "cells": True}),
        ("final", recipe.final_steps, FINAL, 1e-3, {"horizon": 1300, "cooldown": 250, "inner": True}),
    ]
    for stage, steps, mixture, rate, schedule in stages:
        if stage == "pointing":
            model.half().float()  # the shipped models continued from the float16 weights of an earlier version
        language.train_joint(
            model, tokenizer, family, out / stage, stage, steps, recipe.seed, prompts, mixture, rate, log, **schedule,
        )
    model.half()
    path = at_root(spec.checkpoint)
    family.save(model, tokenizer, path)
    shares = {"mixture": MIXTURE, "alignment": ALIGNMENT, "reading": READING, "covers": COVERS, "matching": MATCHING}
    shares |= {"letters": LETTER_STAGE, "choices": CHOICE_STAGE, "pointing": POINTING, "cells": CELLS, "final": FINAL}
    record = {"recipe": vars(recipe), "text": family.text, "vision": family.vision, **shares, "tower_probe": probe}
    write_atomic(path / "training.json", json.dumps(record, indent=1, sort_keys=True))
    log(f"written {path} digest {benchmark.models.digest(path)[:16]}")
    return path


def make_llm(
    family: Family, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, out: Path, log: Callable[[str], None]
) -> Part:
    """Return the language model after the language stage."""
    torch.manual_seed(recipe.seed)
    llm = family.make_llm(tokenizer)
    language.train_language(llm, tokenizer, out, recipe.language_steps, recipe.seed, log, dtype=family.dtype)
    return llm


def make_tower(family: Family, seed: int) -> Part:
    """Return a vision tower with initial weights."""
    torch.manual_seed(seed)
    return family.make_tower()


def assemble(
    family: Family, tokenizer: PreTrainedTokenizerBase, llm: Part, vision_tower: Part, seed: int
) -> PreTrainedModel:
    """Join a language model and a tower with a new projector."""
    torch.manual_seed(seed)
    model = family.make_model(tokenizer)
    parts = family.modules(model)
    parts.tower.load_state_dict(vision_tower.state_dict())
    parts.decoder.load_state_dict(llm.model.state_dict())
    parts.head.load_state_dict(llm.lm_head.state_dict())
    return model


def _logger(name: str, out: Path) -> Callable[[str], None]:
    start = time.time()

    def log(text: str) -> None:
        line = f"[{name} {time.time() - start:6.0f} s] {text}"
        print(line, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log
