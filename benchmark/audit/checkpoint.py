"""`model add`: what a checkpoint of family auto is, and the file of conf/model that adds it. Weights are not read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console

from benchmark.audit.protocol import conversation
from benchmark.config import own_models
from benchmark.config.compose import options_of
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.models import places
from benchmark.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from benchmark.models.auto_inputs import AutoInputs
    from benchmark.models.auto_parts import Parts

PICTURES = ((336, 336), (640, 480), (1024, 768))  # width and height, pixels; the second is typical of COCO
TYPICAL = PICTURES[1]
MAX_LENGTH = 4096  # tokens
LEARNING_RATE = 1e-4  # VILA1.5's of the paper, for blocks and projector


@dataclass(frozen=True)
class Finding:
    """What a checkpoint is.

    Args:
        spec: the model's settings.
        kind: model_type.
        cls: name of its class.
        parts: where its parts are.
        listed: whether the parts come from the table of types.
        sizes: the fields of `benchmark.models.sizes.Measured`.
        trainable: train.scope and L -> (tensors, parameters) that train.
        image_tokens: size of a picture -> positions.
        loose: parameters outside tower, projector, blocks, embedding and output layer.
        tied: whether the output layer is the embedding.
    """

    spec: ModelSpec
    kind: str
    cls: str
    parts: Parts
    listed: bool
    sizes: dict[str, Any]
    trainable: Mapping[str, tuple[int, int]]
    image_tokens: Mapping[tuple[int, int], int]
    loose: tuple[str, ...]
    tied: bool
    inputs: AutoInputs


def main(path: Path, name: str | None, out: Path | None, console: Console | None = None) -> int:
    """Print what a checkpoint is, and write its file of conf/model.

    Args:
        path: the checkpoint's folder; of its weights nothing is read, so configuration, tokenizer and processor do.
        name: id of the model; None: made from the folder's name.
        out: the file to write; None: conf/model/<name>.yaml, of the working folder if the package is installed.
        console: where to print.

    Returns:
        Exit code 0.

    Raises:
        UserError: the checkpoint cannot be used, or the file exists already.
    """
    console = console or Console(highlight=False)
    place = places.find(str(path)).path
    if not place.is_dir():
        raise UserError(f"{path} is not a folder. Give the folder of a checkpoint (config.json, tokenizer, weights).")
    name = name or re.sub(r"\W+", "_", place.resolve().name.lower()).strip("_")
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
        raise UserError(f"{name!r} cannot be the name of a model: use letters, digits, '_', '.', '+' and '-'.")
    target = out or own_models.FOLDER / f"{name}.yaml"
    if target.exists() or (out is None and name in options_of("model")):
        there = target if target.exists() else f"The model {name}"
        raise UserError(f"{there} exists. Give another name (model add {path} NAME), or delete the file.")
    finding = look(place, name)
    for line in report(finding):
        console.print(line, markup=False, soft_wrap=True)
    console.print("prompt     a training sample; the loss sees what is green, or in « »:", markup=False)
    console.print(
        conversation(finding.inputs, "What is shown?", "A cat.", TYPICAL, marks=not console.is_terminal), soft_wrap=True
    )
    write_atomic(target, yaml_of(finding, str(path)))
    console.print(f"\nWrote {target}. Then:", markup=False, soft_wrap=True)
    for command, why in (("audit protocol", "prompts and masks of your data"), ("rates", "its learning rate")):
        console.print(f"  python -m benchmark {command} models={name}   # {why}", markup=False, soft_wrap=True)
    return 0


def look(path: Path, name: str) -> Finding:
    """Return what a checkpoint is, from a model without weights.

    Raises:
        UserError: it cannot be used; the message says why.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from benchmark.models import auto, auto_parts
    from benchmark.models.folder import quiet

    spec = ModelSpec(
        id=name, name=path.resolve().name, family="auto", checkpoint=str(path), preprocess="processor",
        max_length=MAX_LENGTH, learning_rate=LEARNING_RATE, projector_learning_rate=LEARNING_RATE,
    )
    config = auto.read_config(path)
    inputs = auto.load_inputs(path, spec)
    auto.image_token(config)
    with quiet(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parts = auto_parts.PARTS.get(config.model_type)
    listed = parts is not None
    parts = parts or auto_parts.detect(model)
    auto_parts.check(model, parts)
    sizes = _sizes(model, parts, inputs)
    groups = _groups(model, parts)
    return Finding(
        spec=spec, kind=config.model_type, cls=type(model).__name__, parts=parts, listed=listed, sizes=sizes,
        trainable={
            "projector": _count(groups["projector"]),
            "last_layers, L=2": _count({**groups["projector"], **_last(groups["blocks"], parts, 2)}),
            "all": _count({**groups["projector"], **groups["blocks"]}),
        },
        image_tokens={size: inputs.image_tokens(size) for size in PICTURES},
        loose=tuple(groups["loose"]),
        tied=getattr(model.get_output_embeddings(), "weight", None) is model.get_input_embeddings().weight,
        inputs=inputs,
    )


def report(finding: Finding) -> list[str]:
    """Return a finding as lines of text."""
    parts, sizes = finding.parts, finding.sizes
    where = "from the table of types" if finding.listed else "FOUND BY STRUCTURE: look at the model before you confirm"
    block = sum(map(math.prod, sizes["block_shapes"].values()))
    chat = finding.inputs.conversation
    template = "the checkpoint's own" if chat.template else "none: the processor joins prompt and answer"
    tied = "; the output layer is the embedding (tied)" if finding.tied else ""
    lines = [
        f"type       {finding.kind} ({finding.cls}), {sizes['total']:,} parameters{tied}",
        f"parts      {where}",
        f"layers     {sizes['layers']} blocks of {block:,} in {parts.decoder}, hidden size {sizes['hidden']}",
        f"projector  {', '.join(parts.projector)}: {sizes['projector']:,} parameters",
        f"tower      {parts.tower}: {sizes['vision']:,} parameters, frozen",
        "image      " + ", ".join(f"{w}x{h}: {n} tokens" for (w, h), n in finding.image_tokens.items()),
        *(f"trainable  {scope}: {count:,} parameters in {tensors} tensors"
          for scope, (tensors, count) in finding.trainable.items()),
        f"template   {template}; an answer ends with {chat.end!r}",
    ]
    if finding.loose:
        lines.append(f"frozen     {', '.join(finding.loose)}: in no part, so never trained")
    return lines


def yaml_of(finding: Finding, checkpoint: str) -> str:
    """Return the file of conf/model, with a comment per choice."""
    spec, sizes, parts = finding.spec, finding.sizes, finding.parts
    sign = "" if finding.listed else "# "
    named = [] if finding.listed else [
        "# Found by structure. Look at the model (print(model)), then remove the three # to confirm.",
        f"{sign}decoder: {parts.decoder}",
        f"{sign}projector: [{', '.join(parts.projector)}]",
        f"{sign}tower: {parts.tower}",
    ]
    tower, rate = sizes["tower"], f"{LEARNING_RATE:.1e}".replace("e-0", "e-")
    return "\n".join([
        f"# {finding.cls}, written by `model add`. docs/models.md explains the keys.",
        f"id: {spec.id}",
        f"name: {spec.name}",
        "family: auto",
        f"checkpoint: {checkpoint}",
        "preprocess: processor             # the checkpoint's own",
        f"max_length: {spec.max_length}                  # tokens of a training sample, its image included",
        f"learning_rate: {rate}             # the paper's for VILA1.5; choose yours with rates models={spec.id}",
        f"projector_learning_rate: {rate}",
        *named,
        "architecture:                     # for plans; a loaded model must have these counts",
        *(f"  {key}: {value}" for key, value in sizes.items() if key not in ("tower", "block_shapes")),
        "  block_shapes:",
        *(f"    {key}: {value}" for key, value in sizes["block_shapes"].items()),
        f"  tower: {{hidden: {tower['hidden']}, layers: {tower['layers']}, patches: {tower['patches']}}}",
        "",
    ])


def _groups(model: PreTrainedModel, parts: Parts) -> dict[str, dict[str, nn.Parameter]]:
    """Return the parameters of each part; "ends" are embedding, output layer and final norm, "loose" are in no part."""
    names = ("projector", "blocks", "tower", "ends", "loose")
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in names}
    language = parts.decoder.rpartition(".")[0]
    for name, parameter in model.named_parameters():
        if name.startswith(parts.projector_prefixes):
            part = "projector"
        elif name.startswith(f"{parts.decoder}."):
            part = "blocks"
        elif name.startswith(f"{parts.tower}."):
            part = "tower"
        else:
            part = "ends" if name.startswith((f"{language}.", f"{parts.head}.")) else "loose"
        groups[part][name] = parameter
    return groups


def _last(blocks: Mapping[str, nn.Parameter], parts: Parts, count: int) -> dict[str, nn.Parameter]:
    """Return the parameters of the last blocks."""
    place = len(parts.decoder) + 1
    numbers = sorted({int(name[place:].partition(".")[0]) for name in blocks})[-count:]
    return {name: value for name, value in blocks.items() if int(name[place:].partition(".")[0]) in numbers}


def _count(parameters: Mapping[str, nn.Parameter]) -> tuple[int, int]:
    return len(parameters), sum(parameter.numel() for parameter in parameters.values())


def _sizes(model: PreTrainedModel, parts: Parts, inputs: AutoInputs) -> dict[str, Any]:
    """Return the fields of Measured.

    Raises:
        UserError: the blocks differ in their parameters.
    """
    groups, text = _groups(model, parts), model.config.get_text_config()
    blocks = model.get_submodule(parts.decoder).children()
    shapes = [{name: list(p.shape) for name, p in block.named_parameters()} for block in blocks]
    if any(other != shapes[-1] for other in shapes):
        raise UserError(
            f"The blocks of {parts.decoder} differ in their parameters. Such models are not planned yet: write the "
            "file of conf/model by hand (docs/models.md), without an architecture."
        )
    vision = getattr(model.config, "vision_config", None)
    tokens = inputs.image_tokens(TYPICAL)
    return {
        "family": "auto",
        "hidden": text.hidden_size,
        "intermediate": text.intermediate_size,
        "layers": text.num_hidden_layers,
        "vocab": model.get_output_embeddings().weight.shape[0],
        "block_shapes": shapes[-1],
        "projector": _count(groups["projector"])[1],
        "vision": _count(groups["tower"])[1],
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "image_tokens": tokens,
        "tower": {
            "hidden": _first(vision, "embed_dim", "hidden_size"),
            "layers": _first(vision, "depth", "num_hidden_layers"),
            "patches": _patches(inputs, getattr(vision, "patch_size", 1)),
        },
    }


def _patches(inputs: AutoInputs, patch: Any) -> int:
    """Return the positions of a typical picture in the tower: rows of patches, or the area of all tiles in patches."""
    pixels = inputs.tensors(Image.new("RGB", TYPICAL))["pixel_values"]
    side = patch[0] if isinstance(patch, list | tuple) else patch
    return pixels.shape[0] if pixels.ndim == 2 else max(1, pixels.numel() // (3 * side**2))


def _first(config: Any, *names: str) -> int:
    """Return the first of some sizes that a configuration has; 1 if it has none."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), 1)
