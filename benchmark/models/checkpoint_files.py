"""Which files of a checkpoint folder are loaded. The same files are checked and hashed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError

FIX = "Fetch the checkpoint again, or correct model.checkpoint."
PARTS = ("llm", "vision_tower", "mm_projector")  # of VILA's layout
FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))  # safetensors first, as in transformers
WEIGHTS = (".safetensors", ".bin")
SETTINGS = (".json", ".model", ".jinja")
BY_PRODUCTS = ("trainer_state.json", "training.json", "training_args.bin")  # of a training; no loader reads them
STATE = re.compile(r"checkpoint-\d+|global_step\d+")  # folders of states that the Trainer and DeepSpeed write
STANDARD = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_(config|model)\..*")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: the file is missing, cannot be read, or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"Checkpoint file {path} is missing. {FIX}{states_hint(path.parent)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Checkpoint file {path} cannot be read as JSON ({error}). {FIX}") from None
    if not isinstance(value, dict):
        raise UserError(f"Checkpoint file {path} is not a JSON object. {FIX}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of one folder: a single file, or the shards that an index names.

    Raises:
        UserError: the folder is an adapter, has two sets of weights or none, or lacks a shard.
    """
    refuse_adapter(folder)
    for stem, ending in FORMATS:
        single, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
        shards = [folder / name for name in sorted(set(_map(index).values()))] if index.is_file() else []
        absent = [path.name for path in shards if not path.is_file()]
        if single.is_file():
            if shards and not absent:
                raise UserError(
                    f"Checkpoint {folder} has its weights twice: {single.name}, and {len(shards)} shards that "
                    f"{index.name} names. They may differ, and nothing says which is meant. Delete the older set."
                )
            return [single]  # an index without its shards is left over from an earlier save
        if absent:
            raise UserError(f"Checkpoint {folder} lacks {', '.join(absent)}, which {index.name} names. {FIX}")
        if shards:
            return shards
    loose = sorted(path.name for path in folder.glob("*") if path.suffix in (*WEIGHTS, ".pth", ".pt", ".gguf"))
    found = f" (found {', '.join(loose[:3])}{' and more' if len(loose) > 3 else ''}, but no index of shards)"
    raise UserError(
        f"Checkpoint {folder} has no weights: no model*.safetensors and no pytorch_model*.bin{found if loose else ''}. "
        f"{FIX}{states_hint(folder)}"
    )


def safetensors_files(folder: Path) -> list[Path]:
    """Return the weight files of one folder, which must be safetensors; each is opened once to check that it is whole.

    Raises:
        UserError: see `weight_files`; or the weights are pickled, or a file is truncated.
    """
    files = weight_files(folder)
    pickled = [path.name for path in files if path.suffix != ".safetensors"]
    if pickled:
        raise UserError(
            f"Checkpoint {folder} has no model*.safetensors (found {', '.join(pickled)}; only safetensors is read, "
            f"pickled files can run code). {FIX}"
        )
    for path in files:
        check_whole(path)
    return files


def check_whole(path: Path) -> None:
    """Open a safetensors file, which compares its header with its length.

    Raises:
        UserError: it is truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"Checkpoint file {path} is truncated or corrupt ({error}). {FIX}") from None


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a LoRA or another adapter: loading would ignore it, or fetch its base.

    Raises:
        UserError: it has one.
    """
    found = [name for name in ADAPTER if (folder / name).is_file()]
    if found:
        raise UserError(
            f"Checkpoint {folder} is an adapter ({found[0]}), not a whole model. Merge it first: "
            f"python -m benchmark merge lora BASE {folder} OUT (a kind other than LoRA: with PEFT's merge_and_unload)."
        )


def states_hint(folder: Path) -> str:
    """Return a sentence that names the checkpoints of an unfinished training in a folder; empty if there are none."""
    found = [path.name for path in folder.glob("*") if STATE.fullmatch(path.name) and (path / "config.json").is_file()]
    newest = max(found, key=lambda name: int(re.sub(r"\D", "", name)), default=None)
    return f" It holds {len(found)} states of a training: give one of them, e.g. {folder / newest}." if newest else ""


def loaded_files(checkpoint: Path) -> list[Path]:
    """Return every file of a checkpoint that loading depends on: weights, configurations and tokenizer.

    Not among them are states of an unfinished training beside a whole model, weights over which another file takes
    precedence, hidden files, and files that only a trainer reads.

    Args:
        checkpoint: a folder with all files in it, VILA's folder with parts, or a folder of a user's own family, whose
            sub-folders all count.

    Raises:
        UserError: see `weight_files`.
    """
    if (checkpoint / PARTS[0]).is_dir():
        files = _settings(checkpoint.iterdir())
        for part in PARTS:
            if (checkpoint / part).is_dir():
                files += weight_files(checkpoint / part) + _settings((checkpoint / part).iterdir())
    elif any(STANDARD.fullmatch(path.name) for path in checkpoint.glob("*")):
        files = weight_files(checkpoint) + _settings(checkpoint.iterdir())
    else:
        everything = list(_below(checkpoint)) if checkpoint.is_dir() else []
        files = _weights(everything) + _settings(everything)
    return sorted(files)


def promised(file: Path) -> list[str]:
    """Return the names of the tensors that a shard holds according to its index; none for a single file."""
    indices = [file.parent / f"{stem}.{ending}.index.json" for stem, ending in FORMATS if file.suffix == f".{ending}"]
    return [name for index in indices if index.is_file() for name, place in _map(index).items() if place == file.name]


def _map(index: Path) -> dict[str, str]:
    """Return tensor -> file in the index's folder."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"Checkpoint file {index} has no weight_map of tensors and files. {FIX}")
    outside = [name for name in found.values() if Path(name).name != name]
    if outside:
        raise UserError(f"Checkpoint file {index} names {outside[0]!r}, which is not beside it. {FIX}")
    return found


def _weights(paths: Any) -> list[Path]:
    return [path for path in paths if path.suffix in WEIGHTS and path.is_file() and path.name not in BY_PRODUCTS]


def _settings(paths: Any) -> list[Path]:
    return [
        path for path in paths
        if path.suffix in SETTINGS and path.name not in BY_PRODUCTS and path.name[0] != "." and path.is_file()
        and not path.name.endswith(".index.json")  # it only names the weight files
    ]


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name[0] == "." or STATE.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        else:
            yield path
