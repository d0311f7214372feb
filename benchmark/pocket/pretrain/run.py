"""`python -m benchmark pretrain`: train a shipped small model from scratch, in stages that can be resumed.

The stages are tokenizer, language, tower, names and those of `STAGES`. Each saves its result in build/pretrain/<model>/
and is skipped if it is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

import benchmark.models
from benchmark.config.request import request
from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import write_atomic
from benchmark.pocket.pretrain import card, group, language, projector, tower
from benchmark.pocket.pretrain.family import Family, Part
from benchmark.pocket.pretrain.llama import Llava, Vila
from benchmark.pocket.pretrain.qwen import Qwen
from benchmark.pocket.pretrain.stages import RECIPES, STAGES, Recipe
from benchmark.pocket.world.suite import POCKET
from benchmark.spec import ModelSpec, at_root

WORK = at_root("build/pretrain")
FAMILIES: dict[str, type[Family]] = {"llava": Llava, "vila": Vila, "qwen": Qwen}


def main(argv: Sequence[str]) -> int:
    """Train the models named in argv ('model=llava_pocket'; default: the profile's) and write their checkpoint folders.

    Args:
        argv: Hydra-style overrides.

    Returns:
        Exit code 0.

    Raises:
        UserError: a model has no recipe.
    """
    run = request(["profile=pocket", "table=table5", "threads=2", *argv], grid=False)  # it runs alone
    for spec in run.models:
        if spec.id not in RECIPES:
            raise UserError(f"model={spec.id!r} has no pretraining recipe.{did_you_mean(spec.id, RECIPES)}")
    prompts = {name: dataset.prompt for name, dataset in run.datasets.items()}
    torch.set_num_threads(run.threads)
    transformers_logging.set_verbosity_error()
    for spec in run.models:
        recipe = RECIPES[spec.id]
        # Every step has at least a family's batch of pictures or texts, so each process has some.
        group.run(make, (spec, recipe, prompts), min(run.threads, FAMILIES[recipe.family].batch))
        POCKET.draw(at_root(run.data_root))
        loaded = benchmark.models.load(replace(spec, checkpoint=str(at_root(spec.checkpoint))), torch.float32)
        training = json.loads((loaded.path / "training.json").read_text())
        family = FAMILIES[recipe.family]
        verdict = card.write(loaded, spec.id, run.datasets, at_root(run.data_root), training, recipe, family)
        _logger(spec.id, WORK / spec.id)(verdict)
    return 0


def make(spec: ModelSpec, recipe: Recipe, prompts: dict[str, str], work: Path = WORK) -> Path:
    """Run all stages of a model and write its checkpoint; every process of a `group` does it together.

    Args:
        spec: its entry in conf/model.
        recipe: sizes and steps.
        prompts: dataset id -> prompt template.
        work: folder for the results of the stages.

    Returns:
        The checkpoint folder.
    """
    out = work / spec.id
    log = _logger(spec.id, out) if group.is_first() else _silent
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
    for stage in STAGES.values():
        if stage.name == "pointing":
            model.half().float()  # the shipped models continued from the float16 weights of an earlier version
        language.train_joint(
            model, tokenizer, family, out / stage.name, stage, recipe.steps(stage), recipe.seed, prompts, log
        )
    model.half()
    path = at_root(spec.checkpoint)
    if not group.is_first():
        return path
    family.save(model, tokenizer, path)
    mixtures = {stage.name: stage.mixture for stage in STAGES.values() if recipe.steps(stage)}
    record = {
        "recipe": vars(recipe), "text": family.text, "vision": family.vision, "mixtures": mixtures, "tower_probe": probe
    }
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


def _silent(text: str) -> None:
    """Log nothing: another process does."""


def _logger(name: str, out: Path) -> Callable[[str], None]:
    start = time.time()

    def log(text: str) -> None:
        line = f"[{name} {time.time() - start:6.0f} s] {text}"
        print(line, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log
