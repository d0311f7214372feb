"""Adapters: put into a loaded model before training, merged into its weights at the end.

A method with an adapter trains added tensors and the projector. What a cell keeps is nevertheless an ordinary delta:
the difference of the merged weights, computed in float32 and cast once. An adapter that cannot be merged is the
exception: the delta has its tensors as they are, and `inserted` puts them back.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.data import Record
from benchmark.models import LoadedModel, tuned_names
from benchmark.models.batch import Items, collate
from benchmark.spec import TunedCell, at_root, source_samples
from benchmark.training.calibration import Calibration
from benchmark.training.checkpoint import apply_delta, snapshot, state_digest
from benchmark.training.engine import place
from methods.adapter import NAME, AdapterMethod
from methods.base import Method

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def adapted_layers(loaded: LoadedModel, names: Sequence[str], method: AdapterMethod) -> list[str]:
    """Return the names of the layers that a method adapts: those of the trained weights that it can adapt and names.

    Args:
        loaded: the model.
        names: the weights that the scope of the training would train (`benchmark.models.trainable_names`).
        method: with a regular expression for the names of layers below a decoder block, if not all of them.

    Returns:
        Names of modules. The vision tower and the projector are never among them.

    Raises:
        UserError: there is no such layer; or one is quantised, or too small for the adapter.
    """
    possible = {path: module for path, module in _layers(loaded, names).items() if _is(module, method.layers)}
    if not possible:
        raise UserError(
            f"The training trains no {method.layers} layer of a decoder block, but an adapter needs one. Use "
            "train.scope=last_layers, or method=full_ft."
        )
    targets, below = method.params.targets, {path: _below(loaded, path) for path in possible}
    chosen = [path for path in possible if method.adapts(below[path])]
    if not chosen:
        raise UserError(
            f"method.targets={targets!r} names none of the layers that train. It is a regular expression for the whole "
            f"name of a layer below a decoder block, and never reaches the vision tower or the projector. Names: "
            f"{', '.join(sorted(set(below.values())))}."
        )
    for path in chosen:
        weight = possible[path].get_parameter("weight")
        if weight.dtype not in FLOATING or type(weight.data) is not Tensor:
            raise UserError(
                f"{path} is quantised ({weight.dtype}): an adapter could not be merged into it without loss. Use a "
                "checkpoint in float32, bfloat16 or float16."
            )
        if reason := method.fault(weight.shape):
            raise UserError(f"{path} (weight {' x '.join(map(str, weight.shape))}): {reason}.")
    return chosen


def _layers(loaded: LoadedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules of decoder blocks whose weights are named, in order."""
    inside = [name for name in names if name.startswith(tuple(loaded.block_prefixes)) and name.endswith(".weight")]
    paths = [name.removesuffix(".weight") for name in inside]
    return {path: loaded.model.get_submodule(path) for path in paths}


def _is(module: nn.Module, kind: str) -> bool:
    if kind == "linear":
        return isinstance(module, nn.Linear)
    return module.get_parameter("weight").dim() == 1


def _below(loaded: LoadedModel, path: str) -> str:
    """Return a layer's name below its decoder block, for example self_attn.q_proj."""
    return next(path.removeprefix(prefix) for prefix in loaded.block_prefixes if path.startswith(prefix))


class Samples(Calibration):
    """Calibration data that can also simply be run, one sample at a time."""

    @torch.no_grad()
    def run(self) -> None:
        """Run the model on every sample, for hooks."""
        with self._at({}):
            for batch in self._batches:
                self._forward({}, batch)


def insert(
    cell: TunedCell, loaded: LoadedModel, method: Method, names: Sequence[str], records: Sequence[Record],
    sharded: bool,
) -> Adapter | None:
    """Put a method's adapter into a model, as a cell's training needs it; None for a method without one.

    Args:
        cell: the cell.
        loaded: the model with base weights.
        method: its method.
        names: the weights that its scope would train.
        records: the target's training records.
        sharded: whether an engine will shard the model.

    Raises:
        UserError: see `adapted_layers`; the training samples of a source set that the method needs cannot be read.
    """
    if not isinstance(method, AdapterMethod):
        return None
    layers = adapted_layers(loaded, names, method)
    return Adapter(
        loaded, method, names, layers, _calibration(cell, loaded, method, records, layers),
        spare=sharded and place()[0] == 0,
    )


def _calibration(
    cell: TunedCell, loaded: LoadedModel, method: AdapterMethod, records: Sequence[Record], layers: Sequence[str]
) -> Samples | None:
    if not method.calibration_samples:
        return None
    if method.calibrates_on == "target":
        chosen = data.subset(records, method.calibration_samples, cell.seed)
    else:
        share, root = source_samples(cell), at_root(cell.data_root)
        chosen = [record for dataset in cell.upstream for record in data.load(dataset, root, "train", share)]
    items, device = Items(loaded, chosen, supervised=True), next(loaded.model.parameters()).device
    batches = [
        {name: tensor.to(device) for name, tensor in collate(loaded, [items[i]], "right").items()}
        for i in range(len(items))
    ]
    return Samples(loaded.model, batches, [f"{layer}.weight" for layer in layers])


@contextlib.contextmanager
def inserted(
    cell: TunedCell, loaded: LoadedModel, method: AdapterMethod, delta: Mapping[str, Tensor]
) -> Iterator[None]:
    """Put a finished cell's adapter, which cannot be merged, back into a model, until the context ends.

    Args:
        cell: the cell.
        loaded: the model with base weights. Tuned weights of the projector stay in it.
        method: the cell's method.
        delta: from the cell, with the adapter's tensors.

    Raises:
        UserError: the delta does not fit.
    """
    names = tuned_names(loaded, cell.train)
    adapter = Adapter(loaded, method, names, adapted_layers(loaded, names, method))
    try:
        if lost := [name for name in adapter.added if name not in delta]:
            raise UserError(f"The delta of {cell.method.id} lacks {lost[0]}. Train the cell again.")
        apply_delta(loaded.model, delta)
        loaded.model.requires_grad_(False)
        yield
    finally:
        adapter.remove()


class Adapter:
    """A method's adapter inside a model.

    Args:
        loaded: the model; changed in place until `remove`.
        method: the method.
        names: the weights that the scope of the training would train.
        layers: names of the layers to adapt.
        calibration: calibration data, if the method needs any.
        spare: keep a second copy of the adapted layers on the CPU, to merge with. An engine that shards the model needs
            it: afterwards no process has a whole layer.

    Attributes:
        trained: names of the tensors that train: the projector's, and the adapter's.
        parameters: number of their elements.
        share: the same, over that of the weights that the scope would train.
        bytes: of everything that the insertion added to the model, whether it trains or not.
        digest: of the same, before the first step.
        weights: names of the weights that a finished cell keeps, in the order of `names`.
        added: those of them that are tensors of an adapter that cannot be merged.
    """

    def __init__(
        self, loaded: LoadedModel, method: AdapterMethod, names: Sequence[str], layers: Sequence[str],
        calibration: Samples | None = None, spare: bool = False,
    ) -> None:
        self._model, self._method = loaded.model, method
        self._originals = {path: loaded.model.get_submodule(path) for path in layers}
        inside = {f"{path}.{name}" for path, layer in self._originals.items() for name, _ in layer.named_parameters()}
        self._base = snapshot(loaded.model, inside)
        projector = [name for name in names if name.startswith(loaded.projector_prefix)]
        loaded.model.requires_grad_(False)
        try:
            method.insert(loaded.model, layers, calibration)
            self._settle(spare and method.merges)
            self._check_biases(names)
        except BaseException:
            self.remove()
            raise
        self.trained = [*projector, *self._initial]
        sizes = {name: parameter.numel() for name, parameter in loaded.model.named_parameters()}
        whole = sum(sizes[name] if name in sizes else self._base[name].numel() for name in names)
        self.parameters = sum(sizes[name] for name in self.trained)
        self.share = self.parameters / whole
        self.added = [] if method.merges else list(self._initial)
        self.weights = self.trained if self.added else [
            name for name in names if name in self._base or name in projector
        ]

    def _settle(self, spare: bool) -> None:
        """Note what the insertion made."""
        parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        for parameter in parameters.values():
            parameter.data = parameter.data.contiguous()
        self._initial = snapshot(self._model, parameters)
        self._layers: Mapping[str, Any] = {path: self._model.get_submodule(path) for path in self._originals}
        self._split = {
            path for path, layer in self._layers.items()
            for name, value in layer.get_base_layer().named_parameters()
            if not torch.equal(value, self._base[f"{path}.{name}"])
        }
        added = {f"{path}.{name}": value for path, layer in self._layers.items() for name, value in _added(layer)}
        self.bytes = sum({value.data_ptr(): value.nbytes for value in added.values()}.values())  # some are shared
        self.digest = state_digest(added)
        if spare:
            self._layers = copy.deepcopy(self._layers)
            for layer in self._layers.values():
                layer.cpu()

    def _check_biases(self, names: Sequence[str]) -> None:
        """Refuse a scope without the bias of an adapted layer if a merge would change it: that change would be lost.

        Raises:
            UserError: names the bias.
        """
        for path, layer in self._layers.items() if self._method.merges else ():
            bias = f"{path}.bias"
            if bias in self._base and bias not in names and _moves_bias(layer):
                raise UserError(
                    f"train.scope trains {path}.weight without {bias}, which this adapter changes too. Let the pattern "
                    "match both, for example without `weight` at its end."
                )

    def row(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return a method's numbers for train.jsonl. How far the weights moved is known only when they are merged.

        Args:
            numbers: as measured on the trained tensors.
        """
        kept = {name: value for name, value in numbers.items() if name not in ("rms_delta", "restored_fraction")}
        trained = {"trained_parameters": self.parameters, "trained_share": self.share}
        return {"rms_adapter": numbers["rms_delta"], **trained, **kept}

    @torch.no_grad()
    def merged(self, tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the adapted layers with the trained adapter merged into them.

        An insertion that split W* into an adapter and a rest is undone first: W* - B0 A0 + B A, with W* as stored.

        Args:
            tuned: name -> trained tensor, whole and in float32.

        Returns:
            Name -> float32 tensor. The adapter inside the model cannot be trained any more. Nothing for an adapter that
            cannot be merged.
        """
        result: dict[str, Tensor] = {}
        if self.added:
            return result
        for path, layer in self._layers.items():
            layer.float()
            inner = layer.get_base_layer()
            mine = {name: value for name, value in tuned.items() if name.startswith(f"{path}.")}
            for name, parameter in inner.named_parameters():
                parameter.data = self._base[f"{path}.{name}"].to(parameter.device, torch.float32, copy=True)
            if path in self._split:
                _set(layer, path, {name: self._initial[name] for name in mine})
                inner.weight.data -= self._method.change(layer)
            _set(layer, path, mine)
            layer.merge()
            for name, parameter in layer.get_base_layer().named_parameters():
                result[f"{path}.{name}"] = parameter.detach()
        return result

    def base(self, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the base values of `weights`.

        Args:
            pretrained: those of `trained`.
        """
        if self.added:  # no number equals NaN: every tensor of the adapter is kept, whether it moved or not
            return {**pretrained, **{name: torch.full_like(self._initial[name], torch.nan) for name in self.added}}
        return {name: self._base[name] if name in self._base else pretrained[name] for name in self.weights}

    def remove(self) -> None:
        """Put the original layers back, with their base weights."""
        for path, layer in self._originals.items():
            parent, _, child = path.rpartition(".")
            setattr(self._model.get_submodule(parent), child, layer)
            for name, parameter in layer.named_parameters():
                parameter.data = self._base[f"{path}.{name}"].clone()
        self._model.requires_grad_(False)


@torch.no_grad()
def _moves_bias(layer: Any) -> bool:
    """Return whether merging a trained adapter changes the bias of its layer, by a trial."""
    trial = copy.deepcopy(layer).float()
    trial.get_base_layer().bias.data.fill_(1.0)
    for parameter in (parameter for parameter in trial.parameters() if parameter.requires_grad):
        parameter.add_(0.5)
    trial.merge()
    return not bool((trial.get_base_layer().bias == 1.0).all())


def _added(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield everything in an adapted layer that was not in the layer before: parameters, buffers, SHiRA's indices."""
    named = [*layer.named_parameters(), *layer.named_buffers(remove_duplicate=False)]
    yield from ((name, value) for name, value in named if not name.startswith("base_layer."))
    for name, value in vars(layer).items():
        if isinstance(value, dict) and isinstance(tensor := value.get(NAME), Tensor):
            yield name, tensor


def _set(layer: nn.Module, path: str, values: Mapping[str, Tensor]) -> None:
    """Give the adapter's tensors new values."""
    for name, value in values.items():
        parameter = layer.get_parameter(name.removeprefix(f"{path}."))
        parameter.data = value.to(parameter.device, torch.float32)
