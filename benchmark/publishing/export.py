"""A tuned cell as a standard checkpoint: llava-hf's layout, VILA's folders, or the base's own, with a model card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import GenerationConfig, LlavaModel, PreTrainedTokenizerFast

from benchmark import models
from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, unfinished_folder, write_atomic
from benchmark.merging import origins
from benchmark.models import LoadedModel
from benchmark.models.checkpoint_files import read_json
from benchmark.models.folder import quiet
from benchmark.models.loading import load_model
from benchmark.models.prompt import IMAGE_TAG
from benchmark.models.vila import VilaForConditionalGeneration
from benchmark.publishing import peft_folder
from benchmark.spec import CellSpec, answering_dtype, plain, sees_sources, shown
from benchmark.store.cells import Store, read_cell
from benchmark.store.scores import read_scores
from benchmark.training.checkpoint import apply_delta, load_delta
from methods.adapter import FILE as ADAPTER_FILE
from methods.adapter import AdapterMethod
from methods.registry import build, entry

DTYPE = re.compile(r'("(?:torch_|model_)?dtype": "(?:torch\.)?)\w+(")')
TOWER_PREFIX = "vision_model."  # prefix of tensor names in the tower of a public VILA


def export(store: Store, name: str, target: Path) -> Path:
    """Write a cell's model to a new folder; of an adapter that cannot be merged, only what was trained.

    LLaVA is always written in the layout that LlavaForConditionalGeneration.from_pretrained reads. VILA is written as
    VILA's folders, with the configuration files of its base. Family auto is written as its base, with the base's
    processor and chat template. Weights have the dtype of the cell's training.

    Args:
        store: the results that hold the cell.
        name: the cell's folder, or its beginning.
        target: the folder to write; it must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        UserError: no such cell, an untuned cell, a base that does not match the cell, or too little disk space.
    """
    folder = store.find(name)
    cell = read_cell(folder)
    if cell.train is None:
        raise UserError(f"{folder.name} is the untuned base model, which is {cell.model.checkpoint}: use that folder.")
    if cell.model.family not in WRITERS:
        raise UserError(
            f"No writer for family {cell.model.family}: add one to WRITERS in benchmark/publishing/export.py."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty. Give a new folder.")
    loaded = load_model(cell.model, cell.dtype, "cpu")
    delta = load_delta(folder / "delta.safetensors", loaded.digest)
    alone = stays_apart(cell)
    if not alone:
        apply_delta(loaded.model, delta)
    try:
        with unfinished_folder(target.with_name(f".{target.name}.unfinished")) as unfinished:
            base = cell.model.repository or cell.model.id
            peft = alone and peft_folder.write(loaded, delta, base, unfinished)
            if alone and not peft:
                _write_adapter(delta, cell, unfinished)
            elif not alone:
                _check_room(unfinished.parent, loaded)
                WRITERS[cell.model.family](loaded, cell, unfinished)
            write_atomic(unfinished / "README.md", card(cell, folder, loaded.digest, peft))
            if target.exists():
                target.rmdir()
            unfinished.rename(target)  # last, so that an interrupted export does not leave a folder that looks complete
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror or error}. Give another folder.") from None
    return target


def _check_room(folder: Path, loaded: LoadedModel) -> None:
    need = sum(parameter.nbytes for parameter in loaded.model.parameters())
    free = shutil.disk_usage(folder).free
    if free < 1.02 * need:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; the checkpoint takes {need / 1e9:.1f} GB. Free some, or give "
            "another folder."
        )


def _preprocessor(loaded: LoadedModel, cell: CellSpec) -> dict[str, Any]:
    """Return preprocessor_config.json so that transformers' own processor prepares images as the cell did."""
    processor = loaded.image_processor
    common: dict[str, Any] = {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": list(processor.mean),
        "image_std": list(processor.std), "resample": processor.resample, "rescale_factor": 1 / 255,
        "do_convert_rgb": True,
    }
    size = {"height": processor.height, "width": processor.width}
    if cell.model.family == "vila":
        return {**common, "image_processor_type": "SiglipImageProcessor", "size": size}
    return {
        **common, "image_processor_type": "LlavaImageProcessor", "size": {"shortest_edge": processor.short_edge},
        "crop_size": size, "do_center_crop": True, "do_pad": cell.model.preprocess == "pad",
    }


def _generation(loaded: LoadedModel) -> GenerationConfig:
    tokenizer = loaded.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def _tokenizer(loaded: LoadedModel) -> PreTrainedTokenizerFast:
    """Return a tokenizer that turns a whole prompt with "<image>" into the tokens that the cell used.

    The cell tokenises the text before and after an image separately. This tokenizer therefore knows the image token,
    starts with the begin token, and also puts a space before the text after an image.
    """
    tokenizer = loaded.tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    text = json.dumps(content["pre_tokenizer"]).replace('"prepend_scheme": "first"', '"prepend_scheme": "always"')
    content["pre_tokenizer"] = json.loads(text)
    backend = Tokenizer.from_str(json.dumps(content))
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    backend.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    if backend.token_to_id(IMAGE_TAG) is None:
        backend.add_special_tokens([AddedToken(IMAGE_TAG, normalized=False, special=True)])
    if backend.token_to_id(IMAGE_TAG) != loaded.image_token_id:
        raise UserError(
            f"The tokenizer in {loaded.path} has {IMAGE_TAG} at {backend.token_to_id(IMAGE_TAG)}, the model at "
            f"{loaded.image_token_id}: they do not belong together. Correct the checkpoint."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token, pad_token=tokenizer.pad_token, padding_side="left",
        model_max_length=loaded.max_length, clean_up_tokenization_spaces=False,
    )


def _write_llava(loaded: LoadedModel, cell: CellSpec, path: Path) -> None:
    model, images = loaded.model, _preprocessor(loaded, cell)
    # Original transformers classes, so that their names and all rows of the output layer are saved.
    model.model.__class__ = LlavaModel
    model.lm_head.__class__ = torch.nn.Linear
    model.generation_config = _generation(loaded)
    stored = model.lm_head.out_features
    if stored > loaded.vocab_size:  # rows that the cell never used for answers
        model.generation_config.suppress_tokens = list(range(loaded.vocab_size, stored))
    models.save("llava", model, _tokenizer(loaded), images, path)
    write_atomic(path / "processor_config.json", canonical_json({
        "processor_class": "LlavaProcessor", "image_processor": images, "image_token": IMAGE_TAG,
        "patch_size": model.config.vision_config.patch_size, "num_additional_image_tokens": 1,  # CLIP's class token
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
    }))


def _write_vila(loaded: LoadedModel, cell: CellSpec, path: Path) -> None:
    model = loaded.model
    assert isinstance(model, VilaForConditionalGeneration)
    model.llm.generation_config = _generation(loaded)
    models.save("vila", model, loaded.tokenizer, _preprocessor(loaded, cell), path)
    # The public files come from an older transformers: keep its tensor names and the base's configuration files.
    weights = path / "vision_tower" / "model.safetensors"
    tensors = load_file(weights)
    tensors = {f"{TOWER_PREFIX}{name.removeprefix(TOWER_PREFIX)}": tensor for name, tensor in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    for name in ("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json"):
        if (loaded.path / name).is_file():
            text = (loaded.path / name).read_text(encoding="utf-8")
            write_atomic(path / name, DTYPE.sub(rf"\g<1>{cell.dtype}\g<2>", text))


def _write_auto(loaded: LoadedModel, cell: CellSpec, path: Path) -> None:
    """Write the base's own folder with the tuned weights, and with the image settings of the cell."""
    path.mkdir(parents=True, exist_ok=True)
    for file in sorted(loaded.path.iterdir()):
        copied = file.suffix in BESIDE_WEIGHTS and not file.name.endswith(".index.json")
        if copied and file.is_file() and file.name != "trainer_state.json":
            shutil.copyfile(file, path / file.name)
    loaded.model.generation_config = _generation(loaded)
    with quiet():
        loaded.model.save_pretrained(path)
    images, nested = loaded.image_processor.to_dict(), path / "processor_config.json"  # type: ignore[attr-defined]
    write_atomic(path / "preprocessor_config.json", canonical_json(images))
    if nested.is_file() and "image_processor" in (content := read_json(nested)):
        write_atomic(nested, canonical_json(content | {"image_processor": images}))


def stays_apart(cell: CellSpec) -> bool:
    """Return whether a cell has an adapter that cannot be merged into weights."""
    method = build(cell.method.id, dict(cell.method.params), cell.seed)
    return isinstance(method, AdapterMethod) and not method.merges


def _write_adapter(delta: Mapping[str, Tensor], cell: CellSpec, path: Path) -> None:
    """Write what was trained: the adapter and the projector, under their names in the model with the adapter in it."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(dict(delta), path / ADAPTER_FILE, metadata={"format": "pt"})
    write_atomic(path / "adapter_config.json", canonical_json({
        "base_model_name_or_path": cell.model.repository or cell.model.id, "method": cell.method.id,
        **plain(cell.method.params),
    }))


BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")  # configurations, templates and tokenizer files
WRITERS = {"auto": _write_auto, "llava": _write_llava, "vila": _write_vila}


def card(cell: CellSpec, folder: Path, base: str, peft: bool = False) -> str:
    """Return the model card: what the model is, its scores, how to load it.

    Args:
        cell: the model's cell.
        folder: the cell's folder; its scores.json is used if it exists.
        base: digest of the base checkpoint.
        peft: whether the model is an adapter folder of the peft library.
    """
    assert cell.train is not None
    train = cell.train
    origin = yaml.safe_dump(origins.record(base, train.scope, train.last_layers, train.projector), sort_keys=False)
    try:
        scores = read_scores(folder)["datasets"]
    except UserError:
        scores = {}
    rows = [
        f"| {dataset.name} | {dataset.role} | {scores[dataset.id]['value']:.2f} | {scores[dataset.id]['n']} |"
        for dataset in cell.datasets if dataset.id in scores
    ]
    table = ["| dataset | role | score | n |", "| --- | --- | --- | --- |", *rows] if rows else ["Not evaluated."]
    settings = ", ".join(f"{name} {value}" for name, value in shown(cell.train).items() if value is not None)
    if peft:
        load = "PeftModel.from_pretrained(base_model, folder)  # peft"
    elif stays_apart(cell):
        load = f"{entry(cell.method.id).cls.partition(':')[0]}.load(base_model, folder)  # of SpiderBench"
    elif cell.model.family in ("auto", "llava"):
        load = (
            'AutoProcessor.from_pretrained(folder, backend="pil"), '
            "AutoModelForImageTextToText.from_pretrained(folder)  # transformers"
        )
    else:
        load = "VilaForConditionalGeneration.from_pretrained(folder)  # benchmark.models.vila, or VILA's own code"
    prompt = "chat template of the checkpoint" if cell.model.family == "auto" else "vicuna_v1"
    note = f"Answers were generated in {answering_dtype(cell)}. " + (
        f"Answers were scored with the first {cell.model.vocab_size:,} rows of the output layer."
        if cell.model.vocab_size else ""
    )
    return "\n".join([
        "---", f"base_model: {cell.model.repository or cell.model.id}", "tags: [spiderbench]",
        origin + "---", "",
        f"# {cell.model.name}, {cell.method.id} on {cell.target}", "",
        f"Fine-tuned with SpiderBench, cell `{folder.name}`, seed {cell.seed}. The licence is the base model's.", "",
        *table, "", "    " + load, "",
        f"Images: {cell.model.preprocess}. Prompt: {prompt}. {note}".rstrip(), "",
        *(["Training samples of the source sets were seen.", ""] if sees_sources(cell) else []),
        f"Training: {settings}; {cell.dtype}; method parameters {plain(cell.method.params)}.", "",
    ])
