"""Check what a profile requires of this machine: GPUs, loadable checkpoints, datasets with the right counts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmark.config.request import Request
from benchmark.core.commands import output_of
from benchmark.core.errors import UserError
from benchmark.core.machine import available_gb
from benchmark.models import places
from benchmark.models.checkpoint_files import check_whole, weight_files
from benchmark.models.sizes import Architecture, Measured, architecture_of
from benchmark.planning.estimate import GIB, OVERHEAD
from benchmark.spec import ModelSpec, at_root

SPLITS = ("train", "test")


def check(request: Request, wanted_gpus: int) -> tuple[list[str], list[str]]:
    """Check everything that the cells of a profile require.

    Args:
        request: profile and settings.
        wanted_gpus: number of GPUs to use; 0 means any number.

    Returns:
        (facts, faults); each fault names its fix.
    """
    facts: list[str] = []
    faults: list[str] = []
    parts = [
        ("models", _models(request)), ("memory", _memory(request, wanted_gpus)), ("data", _data(request)),
        ("disk", _disk(request)),
    ]
    if request.device == "cuda":
        parts.insert(0, ("cuda", _cuda(wanted_gpus)))
    for _, findings in parts:
        for good, text in findings:
            (facts if good else faults).append(text)
    return facts, faults


def _cuda(wanted: int) -> Iterator[tuple[bool, str]]:
    import torch

    if not torch.cuda.is_available():
        build = torch.version.cuda
        yield False, (
            f"torch {torch.__version__} was built without CUDA: install a CUDA build of torch" if build is None else
            "torch sees no CUDA device: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
        )
        return
    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if total - free > OVERHEAD:
            yield False, f"GPU {index}, {text}: another process uses it: end it, or leave this GPU out (gpus=)"
        else:
            yield True, f"gpu {index}     {text}"
    if not torch.cuda.is_bf16_supported():
        yield False, "this GPU does not support bfloat16: use one of the Ampere generation or later"
    if wanted > count:
        yield False, f"{wanted} GPUs are requested, but this machine has {count}: set GPUS={count}, or give a hostfile"
    if torch.distributed.is_nccl_available():
        yield True, f"nccl      {'.'.join(map(str, torch.cuda.nccl.version()))}, CUDA {torch.version.cuda}"
    else:
        yield False, "NCCL is missing from this torch: several GPUs need it, install the CUDA build of torch for Linux"
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = output_of(query).split()
        yield True, f"driver    {driver[0] if driver else 'unknown'}"
    except (OSError, subprocess.SubprocessError):
        yield True, "driver    unknown (nvidia-smi does not answer)"


def _models(request: Request) -> Iterator[tuple[bool, str]]:
    for model in request.models:
        place = places.checkpoint(model)
        if not place.path.is_dir():
            hub = f", or fetch {model.repository} into the hub cache" if model.repository else ""
            yield False, f"{model.id}: no checkpoint in {place.path}. Put it there{hub}, or set model.checkpoint="
            continue
        try:
            layout, size = _layout(model, place.path)
        except UserError as error:
            yield False, f"{model.id}: {error}"
            continue
        yield True, f"model     {model.id}: {layout} in {place.revision or place.path}, {size / 1e9:.1f} GB"


def _layout(model: ModelSpec, path: Path) -> tuple[str, int]:
    """Return (name of the layout, bytes of its weights).

    Raises:
        UserError: the layout is unknown, a shard is missing or truncated, or the folder has too few weights.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} cannot be read ({error}). Fetch the checkpoint again.") from None
    if model.family == "vila":
        if "llm_cfg" not in config:
            raise UserError(f"{path} is not a VILA folder: its config.json has no llm_cfg. Correct model.checkpoint.")
        name, parts = "VILA folders", [path / part for part in ("llm", "vision_tower", "mm_projector")]
    elif model.family != "llava":
        name, parts = f"family {model.family}", [path]  # the family's loader knows the layout
    elif places.is_original(config):
        name, parts = "LLaVA's own layout", [path, places.tower(path, config, model.vision_tower)]
    elif config.get("model_type") == "llava" and "text_config" in config:
        name, parts = "llava-hf layout", [path]
    else:
        raise UserError(f"{path} is neither llava-hf's layout nor LLaVA's own. Correct model.checkpoint.")
    size = sum(_weights(part) for part in parts)
    if model.architecture:
        expected = 2 * architecture_of(model.architecture, "model.architecture").total
        if size < 0.9 * expected:
            raise UserError(
                f"{path} holds {size / 1e9:.1f} GB of weights, {model.name} has {expected / 1e9:.1f} GB in 16 bits. "
                "Fetch it again."
            )
    return name, size


def _weights(folder: Path) -> int:
    """Check that a folder's weight files are complete, and return their size in bytes."""
    files = weight_files(folder)
    for path in files:
        if path.suffix == ".safetensors":
            check_whole(path)
    return sum(path.stat().st_size for path in files)


def _data(request: Request) -> Iterator[tuple[bool, str]]:
    from benchmark import data

    if find_spec("sentencepiece") is None and request.device == "cuda":
        yield False, "sentencepiece is missing: VILA1.5 and LLaVA have a tokenizer.model (pip install sentencepiece)"
    root = at_root(request.data_root)
    profile = request.profile
    for name in (*profile.upstream, *profile.targets):
        spec = request.datasets[name]
        folder = root / data.reader_of(spec)
        if not folder.is_dir():
            made = "the first run draws it" if profile.prepare else "docs/data.md says where it comes from"
            yield bool(profile.prepare), f"{'data      ' if profile.prepare else ''}{name}: no {folder} yet, {made}"
            continue
        found = []
        for split in SPLITS if name in profile.targets else ("test",):
            try:
                found.append(f"{len(data.load(spec, root, split, None)):,} {split}")
            except UserError as error:
                yield False, f"{name} ({split}): {error}"
        if found:
            yield True, f"data      {name}: {', '.join(found)}"


def _memory(request: Request, processes: int) -> Iterator[tuple[bool, str]]:
    """Compare the host's memory with the need of all processes while each loads the largest model."""
    sizes, free = _architectures(request), available_gb()
    if not sizes or free is None:
        return
    need = 2 * max(size.total for size in sizes) * max(1, processes) / 1e9
    what = f"{need:.0f} GB of host memory while {max(1, processes)} process(es) load the weights, {free:.0f} GB here"
    yield need <= free, f"loading   {what}" if need <= free else f"{what}: use fewer GPUs per machine, or end programs"


def _disk(request: Request) -> Iterator[tuple[bool, str]]:
    """Compare the free space with the states and deltas of a cell of the largest model, as the plan counts them."""
    free = shutil.disk_usage(request.results if request.results.exists() else at_root(".")).free / 1e9
    text = f"{request.results}: {free:.0f} GB free"
    # Two states of 14 bytes per trained parameter, and the delta.
    need = max((30 * size.trainable("last_layers", 2) / 1e9 for size in _architectures(request)), default=0.0)
    if need <= free:
        yield True, f"results   {text}"
    else:
        yield False, f"{text}, a training takes {need:.0f} GB: free some, or set results="


def _architectures(request: Request) -> list[Architecture | Measured]:
    return [
        architecture_of(model.architecture, f"model {model.id}: architecture")
        for model in request.models if model.architecture
    ]
