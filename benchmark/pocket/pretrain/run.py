"""`python -m benchmark pretrain`: train a shipped small model from scratch, in stages that can be resumed.

The stages are tokenizer, language, tower, names (VILA only), alignment, reading, matching, quiz, letters, choices,
more_choices (LLaVA only), instruction, pointing and final. Each saves its result in build/pretrain/<model>/ and is
skipped if it is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers import logging as transformers_logging

import benchmark.models
from benchmark.config.compose import request
from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import write_atomic
from benchmark.models.vila import VilaConfig, VilaForConditionalGeneration
from benchmark.models.vision import ImageProcessor
from benchmark.pocket.pretrain import card, language, projector, tower
from benchmark.pocket.pretrain.corpus import (
    ALIGNMENT,
    CHOICE_STAGE,
    FINAL,
    LETTER_STAGE,
    MATCHING,
    MIXTURE,
    POINTING,
    READING,
)
from benchmark.pocket.pretrain.tokenizer import corpus, train_tokenizer
from benchmark.pocket.world.suite import POCKET
from benchmark.spec import ModelSpec, at_root

WORK = at_root("build/pretrain")

TEXT: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "num_attention_heads": 4,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "patch_size": 16,
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Recipe:
    """Everything but the code that determines a shipped model's weights.

    Args:
        family: llava or vila.
        image_size: side in pixels; 6 x 6 patches for CLIP, 7 x 7 (padded to 8 x 8, joined 2 x 2) for SigLIP.
        seed: of the weights and the data order.
        language_steps: of 64 texts of 96 tokens; both models share the stage.
        tower_steps: of 128 pictures.
        names_steps: of 96 pictures, projector only (VILA: four patches per token).
        alignment_steps: of 16 pictures with transcripts of what they show.
        reading_steps: the same with more signs and covers.
        matching_steps: of 16 pictures with look-ups by content.
        quiz_steps: of 16 pictures with questions and answers in one text.
        letters_steps: of 16 pictures or texts with lettered options.
        choices_steps: the same with keys that mean an option.
        more_choices_steps: the same, starting again at the full learning rate (LLaVA learns letters later).
        instruction_steps: of 16 pictures with all their questions.
        pointing_steps: of 16 pictures or texts with lettered options and inner labels.
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
    matching_steps: int = 1500
    quiz_steps: int = 1200
    letters_steps: int = 700
    choices_steps: int = 1000
    more_choices_steps: int = 0
    instruction_steps: int = 900
    pointing_steps: int = 500
    final_steps: int = 700


RECIPES = {
    "llava_pocket": Recipe("llava", 96, more_choices_steps=700),
    "vila_pocket": Recipe("vila", 112, names_steps=800),
}


def main(argv: Sequence[str]) -> int:
    """Train the models named in argv ('model=llava_pocket'; default: both) and write their checkpoint folders.

    Args:
        argv: Hydra-style overrides.

    Returns:
        Exit code 0.

    Raises:
        UserError: a model has no recipe.
    """
    named = any(item.startswith(("model=", "models=")) for item in argv)
    models = [] if named else [f"models={','.join(RECIPES)}"]
    run = request(["profile=pocket", "table=table5", *models, *argv], grid=False)
    for spec in run.models:
        if spec.id not in RECIPES:
            raise UserError(f"model={spec.id!r} has no pretraining recipe.{did_you_mean(spec.id, RECIPES)}")
    prompts = {name: dataset.prompt for name, dataset in run.datasets.items()}
    torch.set_num_threads(run.threads)
    transformers_logging.set_verbosity_error()
    for spec in run.models:
        make(spec, RECIPES[spec.id], prompts)
        POCKET.draw(at_root(run.data_root))
        loaded = benchmark.models.load(replace(spec, checkpoint=str(at_root(spec.checkpoint))), torch.float32)
        training = json.loads((loaded.path / "training.json").read_text())
        verdict = card.write(loaded, spec.id, run.datasets, at_root(run.data_root), training)
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
    tokenizer = make_tokenizer(prompts)
    processor, preprocessor = make_processor(recipe)
    llm = make_llm(tokenizer, recipe, work / "language", log)
    vision_tower = make_tower(recipe)
    probe = tower.train(vision_tower, processor, out / "tower", recipe.tower_steps, recipe.seed, log=log)
    weak = {name: round(value) for name, value in probe.items() if name.startswith("icon/") and value < 90}
    shown = json.dumps({name: round(value, 1) for name, value in probe.items() if "/" not in name})
    log(f"tower probe {shown}; icons below 90 %: {weak or 'none'}")
    model, image_seq_length = assemble(recipe, tokenizer, llm, vision_tower)
    parts = language.Parts(model)
    projector.condition(parts, processor, recipe.seed)
    projector.train_names(parts, tokenizer, processor, out / "names", recipe.names_steps, recipe.seed, log)
    stages: list[tuple[str, int, dict[str, int], float, dict[str, Any]]] = [
        ("alignment", recipe.alignment_steps, ALIGNMENT, 2e-3, {}),
        ("reading", recipe.reading_steps, READING, 2e-3, {}),
        ("matching", recipe.matching_steps, MATCHING, 1e-3, {"horizon": 3000}),
        ("quiz", recipe.quiz_steps, MATCHING, 1e-3, {"horizon": 1600}),
        ("letters", recipe.letters_steps, LETTER_STAGE, 1e-3, {"horizon": 1200}),
        ("choices", recipe.choices_steps, CHOICE_STAGE, 1e-3, {"horizon": 1500}),
        ("more_choices", recipe.more_choices_steps, CHOICE_STAGE, 1e-3, {"horizon": 1200}),
        ("instruction", recipe.instruction_steps, MIXTURE, 1e-3, {"horizon": 1300, "cooldown": 250}),
        ("pointing", recipe.pointing_steps, POINTING, 1e-3, {"horizon": 1600, "inner": True}),
        ("final", recipe.final_steps, FINAL, 1e-3, {"horizon": 1300, "cooldown": 250, "inner": True}),
    ]
    for stage, steps, mixture, rate, schedule in stages:
        if stage == "pointing":
            model.half().float()  # the shipped models continued from the float16 weights of an earlier version
        language.train_joint(
            model, tokenizer, processor, image_seq_length, out / stage, stage, steps, recipe.seed, prompts, mixture,
            rate, log, **schedule,
        )
    model.half()
    path = at_root(spec.checkpoint)
    benchmark.models.save(recipe.family, model, tokenizer, preprocessor, path)
    shares = {"mixture": MIXTURE, "alignment": ALIGNMENT, "reading": READING, "matching": MATCHING}
    shares |= {"letters": LETTER_STAGE, "choices": CHOICE_STAGE, "pointing": POINTING, "final": FINAL}
    record = {"recipe": vars(recipe), "text": TEXT, "vision": VISION, **shares, "tower_probe": probe}
    write_atomic(path / "training.json", json.dumps(record, indent=1, sort_keys=True))
    log(f"written {path} digest {benchmark.models.digest(path)[:16]}")
    return path


def make_llm(
    tokenizer: PreTrainedTokenizerBase, recipe: Recipe, out: Path, log: Callable[[str], None]
) -> LlamaForCausalLM:
    """Return the language model after the language stage, which is the same for both models."""
    torch.manual_seed(recipe.seed)
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **TEXT))
    language.train_language(llm, tokenizer, out, recipe.language_steps, recipe.seed, log)
    return llm


def make_tower(recipe: Recipe) -> tower.Tower:
    """Return a vision tower with initial weights. Eager attention is the fastest on CPUs in bfloat16."""
    torch.manual_seed(recipe.seed)
    kind, config = (
        (CLIPVisionModel, CLIPVisionConfig) if recipe.family == "llava" else (SiglipVisionModel, SiglipVisionConfig)
    )
    return kind._from_config(config(**VISION, image_size=recipe.image_size), attn_implementation="eager")


def make_tokenizer(prompts: dict[str, str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of both models. Training it is deterministic and takes seconds."""
    return train_tokenizer(corpus(prompts))


def make_processor(recipe: Recipe) -> tuple[ImageProcessor, dict[str, Any]]:
    """Return the image processor and its preprocessor_config.json."""
    size = recipe.image_size
    if recipe.family == "llava":
        processor = ImageProcessor("pad", size, size, size, CLIP_MEAN, CLIP_STD)
        shape = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    else:
        processor = ImageProcessor("resize", size, size, size, (0.5,) * 3, (0.5,) * 3)
        shape = {"size": {"height": size, "width": size}}
    return processor, {**shape, "image_mean": processor.mean, "image_std": processor.std, "resample": 3}


def assemble(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, llm: LlamaForCausalLM, vision_tower: tower.Tower
) -> tuple[language.Whole, int]:
    """Join a language model and a tower with a new projector; return the model and its number of image tokens."""
    torch.manual_seed(recipe.seed)
    text, vision = LlamaConfig(vocab_size=len(tokenizer), **TEXT), {**VISION, "image_size": recipe.image_size}
    if recipe.family == "llava":
        image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        assert isinstance(image_token_id, int)
        image_seq_length = (recipe.image_size // VISION["patch_size"]) ** 2
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=text,
            image_token_index=image_token_id,
            image_seq_length=image_seq_length,
            vision_feature_layer=-2,
        )
        model: language.Whole = LlavaForConditionalGeneration(config)
    else:
        vila_config = VilaConfig(text_config=text, vision_config=SiglipVisionConfig(**vision))
        model, image_seq_length = VilaForConditionalGeneration(vila_config), vila_config.image_seq_length
    parts = language.Parts(model)
    parts.tower.load_state_dict(vision_tower.state_dict())
    parts.decoder.load_state_dict(llm.model.state_dict())
    parts.head.load_state_dict(llm.lm_head.state_dict())
    return model, image_seq_length


def _logger(name: str, out: Path) -> Callable[[str], None]:
    start = time.time()

    def log(text: str) -> None:
        line = f"[{name} {time.time() - start:6.0f} s] {text}"
        print(line, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log
