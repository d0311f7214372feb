"""Adapters: put into a loaded model before training, merged into its weights at the end.

A method with an adapter trains added tensors and the projector; with train.projector=lora every method trains a LoRA of
the projector's layers in place of the projector. What a cell keeps is nevertheless an ordinary delta:
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
from methods.peft import Lora, LoraParams

PROJECTOR = LoraParams(r=32, lora_alpha=64)  # of train.projector=lora, as in LoRASculpt's experiments
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
    if method.layers == "embedding":
        return [input_embedding(loaded)]
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
    _check_layers({path: possible[path] for path in chosen}, method)
    return chosen


def _check_layers(layers: Mapping[str, nn.Module], method: AdapterMethod) -> None:
    """Refuse layers that are quantised, or too small for the adapter."""
    for path, layer in layers.items():
        weight = layer.get_parameter("weight")
        if weight.dtype not in FLOATING or type(weight.data) is not Tensor:
            raise UserError(
                f"{path} is quantised ({weight.dtype}): an adapter could not be merged into it without loss. Use a "
                "checkpoint in float32, bfloat16 or float16."
            )
        if reason := method.fault(weight.shape):
            raise UserError(f"{path} (weight {' x '.join(map(str, weight.shape))}): {reason}.")


def _layers(loaded: LoadedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules of decoder blocks whose weights are named, in order."""
    inside = [name for name in names if name.startswith(tuple(loaded.block_prefixes)) and name.endswith(".weight")]
    paths = [name.removesuffix(".weight") for name in inside]
    return {path: loaded.model.get_submodule(path) for path in paths}


def input_embedding(loaded: LoadedModel) -> str:
    """Return the name of the decoder's input embedding."""
    embedding = loaded.model.get_input_embeddings()
    return next(path for path, module in loaded.model.named_modules() if module is embedding)


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
    """Put the adapters of a cell's training into a model: its method's, and with train.projector=lora the projector's.

    Args:
        cell: the cell.
        loaded: the model with base weights.
        method: its method.
        names: the weights that its scope would train.
        records: the target's training records.
        sharded: whether an engine will shard the model.

    Returns:
        The adapters; None if the cell has none.

    Raises:
        UserError: see `adapted_layers`; the training samples of a source set that the method needs cannot be read.
    """
    own, calibration, parts = method if isinstance(method, AdapterMethod) else None, None, []
    projector = projector_layers(loaded, names) if cell.train.projector == "lora" else []
    if own is not None:
        layers = adapted_layers(loaded, names, own)
        calibration = _calibration(cell, loaded, own, records, layers)
        if own.adapts_projector:
            layers, projector = [*layers, *projector], []
        parts.append((own, layers))
    if projector:
        parts.append((Lora(PROJECTOR, cell.seed), projector))
    for adapter, layers in parts:
        _check_layers({path: loaded.model.get_submodule(path) for path in layers}, adapter)
    if not parts:
        return None
    return Adapter(loaded, parts, names, calibration, sharded and place()[0] == 0, whole=own is None)


def projector_layers(loaded: LoadedModel, names: Sequence[str]) -> list[str]:
    """Return the linear layers of the projector whose weights are named.

    Raises:
        UserError: there is none.
    """
    inside = [name for name in names if name.startswith(loaded.projector_prefix) and name.endswith(".weight")]
    paths = [name.removesuffix(".weight") for name in inside]
    found = [path for path in paths if isinstance(loaded.model.get_submodule(path), nn.Linear)]
    if not found:
        raise UserError("train.projector=lora: the projector has no linear layer. Use train.projector=full or frozen.")
    return found


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
    adapter = Adapter(loaded, [(method, adapted_layers(loaded, names, method))], names)
    try:
        if lost := [name for name in adapter.added if name not in delta]:
            raise UserError(f"The delta of {cell.method.id} lacks {lost[0]}. Train the cell again.")
        apply_delta(loaded.model, delta)
        loaded.model.requires_grad_(False)
        yield
    finally:
        adapter.remove()


class Adapter:
    """The adapters of a training inside a model: the method's, and with train.projector=lora that of the projector.

    Args:
        loaded: the model; changed in place until `remove`.
        parts: each adapter with the names of the layers to adapt.
        names: the weights that the scope of the training would train.
        calibration: calibration data, if the first adapter needs any.
        spare: keep a second copy of the adapted layers on the CPU, to merge with. An engine that shards the model needs
            it: afterwards no process has a whole layer.
        whole: train the named weights of the blocks themselves, too: the method has no adapter.

    Attributes:
        trained: names of the tensors that train: weights that train as they are, and the adapters'.
        unseen: those of them that the method's hooks do not see: a projector's LoRA beside trained weights.
        parameters: number of elements of `trained`.
        share: the same, over that of the weights that the scope would train.
        bytes: of everything that the insertion added to the model, whether it trains or not.
        digest: of the same, before the first step.
        weights: names of the weights that a finished cell keeps, in the order of `names`.
        added: those of them that are tensors of an adapter that cannot be merged.
    """

    def __init__(
        self, loaded: LoadedModel, parts: Sequence[tuple[AdapterMethod, Sequence[str]]], names: Sequence[str],
        calibration: Samples | None = None, spare: bool = False, whole: bool = False,
    ) -> None:
        self._model = loaded.model
        self._methods = {path: method for method, layers in parts for path in layers}
        self._originals = {path: loaded.model.get_submodule(path) for path in self._methods}
        inside = {  # an embedding is not among the weights that a scope trains, and large
            f"{path}.{name}" for path, layer in self._originals.items() for name, _ in layer.named_parameters()
            if self._methods[path].layers != "embedding"
        }
        self._base = snapshot(loaded.model, inside)
        projector = {name for name in names if name.startswith(loaded.projector_prefix)}
        adapted = any(f"{path}.weight" in projector for path in self._methods)
        loaded.model.requires_grad_(False)
        try:
            begun: list[nn.Parameter] = []
            for method, layers in parts:
                method.insert(loaded.model, layers, calibration)
                for parameter in begun:  # the library freezes what it did not add
                    parameter.requires_grad_(True)
                begun = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
            self._settle(spare)
            self._check_biases(names)
        except BaseException:
            self.remove()
            raise
        plain = [name for name in names if (not adapted if name in projector else whole)]
        self.trained = [*plain, *self._initial]
        self.unseen = tuple(self._initial) if whole else ()
        sizes = {name: parameter.numel() for name, parameter in loaded.model.named_parameters()}
        self.parameters = sum(sizes[name] for name in self.trained)
        self.share = self.parameters / sum(
            sizes[name] if name in sizes else self._base[name].numel() for name in names
        )
        stay = tuple(f"{path}." for path, method in self._methods.items() if not method.merges)
        self.added = [name for name in self._initial if name.startswith(stay)]
        kept = {name for name in self._base if not name.startswith(stay)}.union(plain)
        self.weights = [*(name for name in names if name in kept), *self.added]

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
            if f"{path}.{name}" in self._base and not torch.equal(value, self._base[f"{path}.{name}"])
        }
        added = {f"{path}.{name}": value for path, layer in self._layers.items() for name, value in _added(layer)}
        self.bytes = sum({value.data_ptr(): value.nbytes for value in added.values()}.values())  # some are shared
        self.digest = state_digest(added)
        self._layers = {path: layer for path, layer in self._layers.items() if self._methods[path].merges}
        if spare:
            self._layers = copy.deepcopy(self._layers)
            for layer in self._layers.values():
                layer.cpu()

    def _check_biases(self, names: Sequence[str]) -> None:
        """Refuse a scope without the bias of an adapted layer if a merge would change it: that change would be lost.

        Raises:
            UserError: names the bias.
        """
        for path, layer in self._layers.items():
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
        if self.unseen:  # the weights of the blocks themselves train, so a share would not say what the method selects
            return kept
        trained = {"trained_parameters": self.parameters, "trained_share": self.share}
        return {"rms_adapter": numbers["rms_delta"], **trained, **kept}

    @torch.no_grad()
    def merged(self, tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the adapted layers with the trained adapter merged into them.

        An insertion that split W* into an adapter and a rest is undone first: W* - B0 A0 + B A, with W* as stored.

        Args:
            tuned: name -> trained tensor, whole and in float32.

        Returns:
            Name -> float32 tensor, without the layers of an adapter that cannot be merged. The others inside the model
            cannot be trained any more.
        """
        result = {}
        for path, layer in self._layers.items():
            layer.float()
            inner = layer.get_base_layer()
            mine = {name: value for name, value in tuned.items() if name.startswith(f"{path}.")}
            for name, parameter in inner.named_parameters():
                parameter.data = self._base[f"{path}.{name}"].to(parameter.device, torch.float32, copy=True)
            if path in self._split:
                _set(layer, path, {name: self._initial[name] for name in mine})
                inner.weight.data -= self._methods[path].change(layer)
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
        # No number equals NaN: every tensor of an adapter that stays is kept, whether it moved or not.
        pretrained = {**pretrained, **{name: torch.full_like(self._initial[name], torch.nan) for name in self.added}}
        return {name: self._base[name] if name in self._base else pretrained[name] for name in self.weights}

    def remove(self) -> None:
        """Put the original layers back, with their base weights."""
        for method in dict.fromkeys(self._methods.values()):
            method.leave()
        for path, layer in self._originals.items():
            parent, _, child = path.rpartition(".")
            setattr(self._model.get_submodule(parent), child, layer)
            for name, parameter in layer.named_parameters():
                if f"{path}.{name}" in self._base:
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
