"""Deltas (the tensors that differ from the base) and the saved states of an unfinished training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, sha256_file, sync, write_atomic

# Only one key: safetensors writes several in random order, but equal runs should give equal files.
KEY = "spiderbench"
MARK = "digests.json"  # digests of a saved state's files
FULL = ("PytorchStreamWriter", "inline_container")  # words in torch.save's RuntimeError on a full disk
AGAIN = "Delete it and train the cell again."


def snapshot(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the named parameters: apply_delta restores them, or they serve as a method's w*."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}


def save_delta(
    path: Path,
    model_or_state: nn.Module | Mapping[str, Tensor],
    base_state: Mapping[str, Tensor],
    names: Iterable[str],
    base_digest: str,
    extra: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the named tensors that differ from the base, atomically.

    Args:
        path: delta.safetensors.
        model_or_state: the tuned model, or name -> tuned tensor.
        base_state: name -> tensor of the base.
        names: the tensors that were allowed to change.
        base_digest: digest of the base checkpoint.
        extra: JSON values for the file's metadata.

    Returns:
        The names of the written tensors.

    Raises:
        UserError: the folder cannot be written, or a value is not finite.
    """
    state = model_or_state
    if isinstance(state, nn.Module):
        state = dict(state.named_parameters())
    tensors = {}
    for name in names:
        tensor = state[name].detach().to("cpu")
        if not torch.equal(tensor, base_state[name].to("cpu", tensor.dtype)):
            tensors[name] = tensor.contiguous()
    overflown = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if overflown:
        raise UserError(
            f"{len(overflown)} tuned tensors hold numbers that are not finite (first: {overflown[0]}): nothing is "
            "written and no score is made of them. Lower train.learning_rate, or change the method's parameters."
        )
    metadata = {**(extra or {}), "base_digest": base_digest, "digest": state_digest(tensors)}
    write_atomic(path, save(tensors, metadata={KEY: canonical_json(metadata)}))
    return list(tensors)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that save_delta wrote.

    Raises:
        UserError: the file is missing, truncated, or not a delta.
    """
    with _open(path) as file:
        return _metadata(path, file)


def load_delta(path: Path, base_digest: str) -> dict[str, Tensor]:
    """Read a delta and check that it is whole and belongs to the base.

    Args:
        path: delta.safetensors.
        base_digest: digest of the base checkpoint that it will be applied to.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        UserError: the file is missing, truncated or altered, or belongs to another base.
    """
    with _open(path) as file:
        metadata = _metadata(path, file)
        if metadata["base_digest"] != base_digest:
            raise UserError(
                f"{path} was made from the base checkpoint {metadata['base_digest'][:12]}, not from "
                f"{base_digest[:12]}. Use the base it was trained from, or train the cell again."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if state_digest(tensors) != metadata["digest"]:
        raise UserError(f"{path} is damaged: its digest differs. {AGAIN}")
    return tensors


def apply_delta(model: nn.Module, delta: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model's parameters of the same name; a snapshot undoes it.

    Args:
        model: changed in place.
        delta: name -> tensor, cast to the parameter's dtype and device.

    Raises:
        UserError: the model has no parameter of a name, or a shape differs.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in delta.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            reason = f"has shape {tuple(tensor.shape)}" if name in parameters else "is unknown"
            raise UserError(
                f"The delta does not fit the model: {name} {reason}. Use the base it was trained from."
            )
    with torch.no_grad():
        for name, tensor in delta.items():
            parameters[name].copy_(tensor)


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes; the order does not matter."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # An array is a buffer; before 3.12 Python has no class that says so.
        total.update(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return total.hexdigest()


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the cell was not trained. Train it first.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}). {AGAIN}") from None


def _metadata(path: Path, file: Any) -> dict[str, Any]:
    try:
        return json.loads(file.metadata()[KEY])
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path} is not a delta that this program wrote. {AGAIN}") from None


class StateFolder:
    """The saved states of an unfinished training: one sub-folder per saved step; the two newest are kept.

    A list of digests, written last, is beside the files of a state. If the files differ from it, the state before is
    used instead.

    Args:
        path: out/checkpoint.
        fingerprint: digest of everything that must be equal for an exact resume.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

    @property
    def unfinished(self) -> Path:
        """Folder of a state that is being written."""
        return self.path / "unfinished"

    def create(self) -> None:
        """Create the folder.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def latest(self, check: bool = True) -> Path | None:
        """Return the newest state that is whole, or None.

        Args:
            check: compare the files with their digests, and delete damaged states (with a warning), incomplete states
                and states of other settings. If false, another process has just done so.
        """
        states = self._states()
        if not check:
            return states[-1] if states else None
        for path in set(self.path.iterdir()) - set(states):
            _delete(path)
        while states:
            fault = self._fault(states[-1])
            if fault is None:
                return states[-1]
            damaged = states.pop()
            _delete(damaged)
            if fault:
                rest = f"goes on from {states[-1].name}" if states else "starts again"
                print(f"warning: the training state {damaged} is damaged ({fault}); training {rest}.", flush=True)
        return None

    @contextlib.contextmanager
    def save(self, step: int) -> Iterator[Path]:
        """Yield an empty folder to write a state into. It becomes the newest state when all files are on disk.

        Raises:
            UserError: the disk is full or not writable.
        """
        unfinished = self.unfinished
        try:
            # The newest state stays until this one is complete. The older one is deleted now: disks need room for two.
            for old in (unfinished, *self._states()[:-1]):
                _delete(old)
            unfinished.mkdir()
            yield unfinished
            digests = {}
            for path in sorted(unfinished.rglob("*")):
                if path.is_file():
                    digests[path.relative_to(unfinished).as_posix()] = sha256_file(path)
                sync(path)
            mark = {"fingerprint": self.fingerprint, "sha256": digests}
            write_atomic(unfinished / MARK, canonical_json(mark))
            sync(unfinished)
            unfinished.rename(self.path / f"step-{step:09}")
            sync(self.path)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            # A process that waits for a dead one also raises a RuntimeError.
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in FULL):
                raise
            raise _unwritable(self.path, error) from None

    def _states(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))

    def _fault(self, folder: Path) -> str | None:
        """Return the fault of a state: None for a whole state, "" for a state of other settings."""
        try:
            mark = json.loads((folder / MARK).read_text())
            fingerprint, digests = mark["fingerprint"], dict(mark["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{MARK} is missing or cannot be read"
        if fingerprint != self.fingerprint:
            return ""
        for name, digest in digests.items():
            try:
                if sha256_file(folder / name) != digest:
                    return f"{name} differs from its digest"
            except OSError as error:
                return f"{name}: {error.strerror}"
        return None


def _delete(path: Path) -> None:
    """Delete a state or a stray file. The digests go first, so that a kill leaves nothing that passes for a state."""
    if path.is_dir() and not path.is_symlink():
        (path / MARK).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"Cannot write {path}: {reason}. Choose a writable folder with free space (RESULTS=dir)."
    )
