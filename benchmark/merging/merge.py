"""Merge checkpoints on files: check the inputs, write the new checkpoint tensor by tensor, and its model card."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from benchmark.core.errors import UserError, counted, did_you_mean
from benchmark.core.files import digest_of, sync, unfinished_folder, user_path, write_atomic
from benchmark.core.progress import StageTold
from benchmark.merging import CALIBRATED, MERGES, POSTHOC, SEVERAL
from benchmark.merging.adapter import CONFIG, FILE, Adapter
from benchmark.merging.origins import CARD, check_origins
from benchmark.merging.weights import Weights
from benchmark.models.checkpoint_files import BY_PRODUCTS, PARTS, STATE, check_whole, read_json, refuse_adapter
from benchmark.models.digest_cache import checkpoint_digest, file_digest
from methods.base import NoParams
from methods.lines import depths, scaled
from methods.registry import METHODS, build, checked, configured
from methods.soup import SoupParams, average
from methods.ties import TiesMerge, TiesParams

if TYPE_CHECKING:
    from benchmark.training.calibration import Calibration

Rule = Callable[[str, Tensor, Sequence[Tensor]], Tensor]  # (name, w*, tuned tensors) -> new tensor
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


def merge(
    method: str, base: str | Path, tuned: str | Path | Sequence[str | Path], out: str | Path,
    params: Mapping[str, Any] | None = None, seed: int = 0, told: StageTold = lambda stage, done, total: None,
    calibrate: Callable[[Sequence[str]], Calibration | None] | None = None,
) -> Path:
    """Write a merge of a base checkpoint and models tuned from it as a new checkpoint.

    The new checkpoint has the base's files, names, dtypes, tokenizer and settings. Each tensor is read, computed in
    float32 and written before the next one, so memory is that of a few tensors. Merges of `CALIBRATED` hold the model
    and all changed tensors. The folder appears under its name when it is complete.

    Args:
        method: one of `MERGES`.
        base: w*, a checkpoint folder.
        tuned: checkpoint folders of the same architecture; for "lora" the folder of a PEFT adapter. "soup" and "ties"
            take two or more; the others take one, which needs no list.
        out: the folder to write; it must not exist.
        params: the method's parameters; missing ones have the values of the benchmark's own cells.
        seed: of random choices, as in a cell.
        told: callback (stage, tensors done, all tensors).
        calibrate: for merges of `CALIBRATED`: what returns the calibration data for the names of the changed tensors,
            such as `benchmark.running.calibrate.calibrate` with a cell.

    Returns:
        The folder.

    Raises:
        UserError: unknown method or parameter, inputs that do not fit together (all tensors that differ are named;
            exported cells of different bases or scopes), or a folder that cannot be written.
    """
    values = _params(method, params or {})
    folders = [user_path(folder) for folder in ([tuned] if isinstance(tuned, str | Path) else tuned)]
    if method in CALIBRATED and calibrate is None:
        raise UserError(f"{method} measures on a model and its training data. Give `calibrate`.")
    return _merge(method, user_path(base), folders, user_path(out), values, seed, told, calibrate)


def _merge(
    method: str, base: Path, tuned: Sequence[Path], out: Path, values: Any, seed: int, told: StageTold,
    calibrate: Callable[[Sequence[str]], Calibration | None] | None,
) -> Path:
    _check_folders(method, base, tuned, out)
    if method == "lora":
        refuse_adapter(base)
    elif any((folder / CONFIG).is_file() for folder in (base, *tuned)):
        which = next(folder for folder in (base, *tuned) if (folder / CONFIG).is_file())
        raise UserError(f"{which} is an adapter, not a whole model. Merge it first: merge lora BASE {which} OUT.")
    check_origins(tuned)
    start = Weights(base)
    others = [] if method == "lora" else [Weights(folder) for folder in tuned]
    _check_same(start, others)
    pairs = Pairs(start, others, told)
    rule = Adapter(tuned[0], start) if method == "lora" else _rule(method, values, seed, pairs, calibrate)
    digests = {"base": _digest(base), "tuned": [_digest(folder) for folder in tuned]}
    try:
        with unfinished_folder(out.with_name(f".{out.name}.unfinished")) as unfinished:
            _check_room(unfinished.parent, start)
            unfinished.mkdir()
            _copy_settings(base, unfinished)
            changed = _write(start, others, rule, unfinished, told)
            if not changed:
                raise UserError(f"{base} and {', '.join(map(str, tuned))} hold the same weights: nothing to merge.")
            card = _card(method, values, seed, base, tuned, digests, changed, len(start.entries))
            write_atomic(unfinished / CARD, card)
            sync(unfinished)
            unfinished.rename(out)  # last, so that an interrupted merge leaves no folder that looks complete
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}. Give another folder.") from None
    return out


class Pairs:
    """Passes over the float tensors of a base and of the models tuned from it, for rules that need the whole model."""

    def __init__(self, base: Weights, tuned: Sequence[Weights], told: StageTold) -> None:
        self._base, self._tuned, self._told = base, tuned, told
        self.models = len(tuned)

    def __call__(self, stage: str) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
        """Yield (name, w*, tuned tensors); `stage` is the name of the pass for the progress display."""
        for number, (name, entry) in enumerate(self._base.entries.items()):
            self._told(stage, number, len(self._base.entries))
            if entry.is_float:
                yield name, entry.read(), [other.entries[name].read() for other in self._tuned]


def _params(method: str, given: Mapping[str, Any]) -> Any:
    """Return the parameters of a merge.

    Raises:
        UserError: an unknown merge, parameter or value.
    """
    if method in (*POSTHOC, *CALIBRATED):
        return checked(method, _cls(method), {**configured(method), **given})
    if method in SEVERAL:
        return checked(method, {"soup": SoupParams, "ties": TiesParams}[method], given)
    if method == "lora":
        return checked(method, NoParams, given)
    why = ""
    if method in METHODS and METHODS[method].kind == "training":
        why = f" {method} acts during training, and a merge begins with finished checkpoints."
    raise UserError(f"Unknown merge {method!r}.{why}{did_you_mean(method, MERGES)}")


def _cls(method: str) -> type:
    return type(build(method, {}, 0)).Params


def _check_folders(method: str, base: Path, tuned: Sequence[Path], out: Path) -> None:
    """Check the paths before anything is read."""
    if len(tuned) != 1 and method not in SEVERAL:
        raise UserError(f"{method} takes one tuned model, got {len(tuned)}. To merge several, use soup or ties.")
    if len(tuned) == 1 and method == "soup":
        raise UserError("soup averages several tuned models, got one. Use wise_ft for one, or name two models or more.")
    if len(tuned) == 1 and method == "ties":
        raise UserError(
            "ties elects a sign between several tuned models; with one it would only keep the largest changes. Use "
            "dare_magnitude for that, or name two models or more."
        )
    for folder in (base, *tuned):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder. Give the folder of a checkpoint, or a model of the hub cache.")
    inputs = [folder.resolve() for folder in (base, *tuned)]
    for folder in inputs:
        if inputs.count(folder) > 1:
            raise UserError(f"{folder} is given twice. Name each checkpoint once.")
        if out.resolve().is_relative_to(folder):
            raise UserError(f"{out} lies in {folder}, which is read. Give a folder outside it.")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists. Give a new folder.")


def _check_same(base: Weights, others: Sequence[Weights]) -> None:
    """Compare architectures, then names and shapes.

    Raises:
        UserError: names everything that differs.
    """
    for folder in (base.folder, *(other.folder for other in others)):
        if quantised := _config(folder).get("quantization_config"):
            kind = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
            raise UserError(
                f"{folder} holds quantised weights ({kind or 'quantization_config'}), which cannot be averaged. Merge "
                "the checkpoint from before."
            )
    faults = []
    for other in others:
        for key in ("model_type", "architectures"):
            ours, theirs = _config(base.folder).get(key), _config(other.folder).get(key)
            if ours and theirs and ours != theirs:
                raise UserError(
                    f"{base.folder} and {other.folder} are different architectures: {key} is {_shown(ours)} and "
                    f"{_shown(theirs)}. Give models tuned from the same base."
                )
        faults += [f"{name} is only in {base.folder}" for name in sorted(base.entries.keys() - other.entries.keys())]
        faults += [f"{name} is only in {other.folder}" for name in sorted(other.entries.keys() - base.entries.keys())]
        for name in sorted(base.entries.keys() & other.entries.keys()):
            one, two = base.entries[name], other.entries[name]
            if one.shape != two.shape:
                faults.append(f"{name} is {list(one.shape)} in {base.folder} and {list(two.shape)} in {other.folder}")
            elif one.is_float != two.is_float:
                faults.append(f"{name} is {one.dtype} in {base.folder} and {two.dtype} in {other.folder}")
    if faults:
        raise UserError(
            f"{counted(len(faults), 'tensor')} cannot be merged: {'; '.join(faults)}. Give checkpoints with the same "
            "tensors; a vocabulary that was enlarged must be cut back first."
        )


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json, or what VILA's language model says if the folder has none."""
    path = folder / "config.json"
    return read_json(path if path.is_file() or not (folder / PARTS[0]).is_dir() else folder / PARTS[0] / path.name)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rule(
    method: str, params: Any, seed: int, pairs: Pairs,
    calibrate: Callable[[Sequence[str]], Calibration | None] | None,
) -> Rule:
    """Return what makes a new tensor out of the base's and the tuned ones."""
    if calibrate is not None:
        before, after = {}, {}
        for name, weight, (other,) in pairs("tuned tensors"):
            if not torch.equal(weight.to(other), other):
                before[name], after[name] = weight, other
        result = build(method, asdict(params), seed).finish(after, before, calibrate(list(after))) if after else {}
        return lambda name, weight, others: result.pop(name, weight)  # equal, but stored in another dtype
    if method == "ties":
        return TiesMerge(params, pairs, pairs.models)
    if method == "soup":
        return lambda name, weight, others: average(weight, others, params.alpha)
    if method == "lines":
        depth = depths(name for name, weight, (other,) in pairs("layers") if not torch.equal(weight.to(other), other))
        return lambda name, weight, others: scaled(weight, others[0], depth.get(name, 0.0), params)
    rule = build(method, asdict(params), seed)

    def finish(name: str, weight: Tensor, others: Sequence[Tensor]) -> Tensor:
        return rule.finish({name: others[0]}, {name: weight}, None)[name]

    return finish


def _write(base: Weights, others: Sequence[Weights], rule: Rule, target: Path, told: StageTold) -> int:
    """Write the new weights; return how many tensors differ from the base's inputs.

    Raises:
        UserError: a tensor that holds no floats differs, or a result is not finite.
    """
    done = changed = 0

    def tensor_of(name: str) -> Tensor:
        nonlocal done, changed
        told("merge", done, len(base.entries))
        done += 1
        entry = base.entries[name]
        weight = entry.read()
        tuned = [other.entries[name].read() for other in others]
        if others and all(tensor.dtype == weight.dtype and torch.equal(tensor, weight) for tensor in tuned):
            return weight
        if others and not entry.is_float:
            raise UserError(
                f"{name} is stored as {entry.dtype} and differs; only floats can be merged. Make it equal everywhere."
            )
        result = rule(name, weight, tuned)
        if result is weight:  # an adapter leaves the tensor alone
            return weight
        result = result.to(weight.dtype)
        if not bool(torch.isfinite(result).all()):
            raise UserError(
                f"{name} would hold numbers that are not finite in {entry.dtype}. Check the inputs, or lower the "
                "method's strength."
            )
        changed += 1
        return result

    base.write_like(target, tensor_of)
    for path in target.rglob("*.safetensors"):
        check_whole(path)
    return changed


def _check_room(folder: Path, base: Weights) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.02 * base.nbytes:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; the checkpoint takes {base.nbytes / 1e9:.1f} GB. Free some, or "
            "give another folder."
        )


def _copied(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint that hold no weights: settings, tokenizer, licence; relative to the folder."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        left_out = any(part[0] == "." or STATE.fullmatch(part) for part in inner.parts)
        by_product = path.name in (CARD, *BY_PRODUCTS) or path.name.endswith(NOT_COPIED)
        if path.is_file() and not (left_out or by_product):
            yield inner


def _copy_settings(base: Path, target: Path) -> None:
    for inner in _copied(base):
        (target / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / inner, target / inner)
    for index in base.rglob("*.safetensors.index.json"):
        inner = index.relative_to(base)
        single = index.with_name(index.name.removesuffix(".index.json"))
        if not single.is_file() and (index.parent == base or inner.parts[0] in PARTS):
            shutil.copyfile(index, target / inner)


def differing_settings(base: Path, tuned: Path) -> list[str]:
    """Return the files of settings and tokenizer that a tuned model has otherwise than its base, or alone."""
    names = {path for path in (*_copied(base), *_copied(tuned)) if path.suffix in (".json", ".model", ".jinja")}
    different = []
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):
            if (base / name).read_bytes() == (tuned / name).read_bytes():
                continue
        if (tuned / name).is_file():
            different.append(name.as_posix())
    return different


def other_base(base: Path, adapter: Path) -> str | None:
    """Return the base that an adapter names in its configuration, if it is called otherwise than the given one."""
    named = read_json(adapter / CONFIG).get("base_model_name_or_path")
    same = named is None or named == _name(base) or Path(named).resolve().name == base.resolve().name
    return None if same else str(named)


def _digest(folder: Path) -> str:
    """Return the digest of a checkpoint as a cell's key has it, or of an adapter's settings and weights."""
    if (folder / CONFIG).is_file():
        return digest_of([file_digest(folder / name) for name in (CONFIG, FILE)])
    return str(checkpoint_digest([folder]))


def _name(folder: Path) -> str:
    """Return the name of a checkpoint: its folder's, or its repository's for a snapshot of the hub cache."""
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.resolve().name


def _card(
    method: str, params: Any, seed: int, base: Path, tuned: Sequence[Path], digests: Mapping[str, Any], changed: int,
    tensors: int,
) -> str:
    """Return the model card. Its front matter holds everything that is needed to make the merge again."""
    record: dict[str, Any] = {
        "method": method, "parameters": asdict(params), "seed": seed,
        "base": {"name": _name(base), "sha256": digests["base"]},
        "tuned": [
            {"name": _name(folder), "sha256": digest} for folder, digest in zip(tuned, digests["tuned"], strict=True)
        ],
    }
    front = yaml.safe_dump(
        {"base_model": [_name(base), *(_name(folder) for folder in tuned)], "base_model_relation": "merge",
         "tags": ["merge", "spiderbench"], "spiderbench_merge": record},
        sort_keys=False, allow_unicode=True,
    )
    settings = ", ".join(f"{name} {value}" for name, value in asdict(params).items()) or "none"
    reference = METHODS[method].reference
    inputs = [record["base"], *record["tuned"]]
    rows = [
        f"| {'tuned' if number else 'base'} | {one['name']} | `{one['sha256']}` |" for number, one in enumerate(inputs)
    ]
    return "\n".join([
        "---", front + "---", "", f"# {_name(base)}, merged by {method}", "",
        f"Merged with SpiderBench by {method} ({reference}). Parameters: {settings}; seed {seed}. "
        f"{changed:,} of {tensors:,} tensors changed. Tokenizer, settings and dtypes are the base's. "
        "The licence is the base model's, and that of what was merged.", "",
        "| | folder | SHA-256 |", "| --- | --- | --- |", *rows, "",
    ])
