"""A plan on named GPUs: the hours, memory and disk that every model needs at full scale, and what would fit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from benchmark.config.request import Request
from benchmark.core.errors import UserError
from benchmark.core.hosts import world_size
from benchmark.core.progress import clock
from benchmark.models import places
from benchmark.models.sizes import Architecture, Measured, architecture_of
from benchmark.planning.cost import Costs
from benchmark.planning.estimate import (
    GIB,
    GPUS,
    UTILISATION,
    Gpu,
    Setting,
    activations,
    answer_seconds,
    fits,
    measured_rate,
    memory,
    parse_gpus,
    remedy,
    sample_flops,
    setting_of,
    training_seconds,
)
from benchmark.planning.image_tokens import ImageTokens, of_data
from benchmark.planning.plan import Planned
from benchmark.spec import CellSpec, ModelSpec, samples
from benchmark.store.cells import Store

Range = tuple[float, float]


class Forecast(Costs):
    """Times of cells on named GPUs, calibrated by the cells of the results folder that ran on such GPUs.

    Args:
        store: finished cells.
        request: the request that is planned.
        gpus: e.g. "4090x8".

    Raises:
        UserError: an unknown card, or a number of cards that differs from the request's.
    """

    def __init__(self, store: Store, request: Request, gpus: str) -> None:
        super().__init__(store, request.profile)
        self.gpu, self.count = parse_gpus(gpus)
        processes = {world_size(c.processes, c.hostfile) for c in request.cells if c.engine != "single"} - {0}
        if processes - {self.count}:
            raise UserError(f"gpu={gpus} names {self.count} GPUs, but gpus={max(processes)}. Make them equal.")
        self.sizes = {
            model.id: architecture_of(model.architecture, f"model {model.id}: architecture")
            for model in request.models if model.architecture
        }
        self.rates = _rates(store, self.gpu)
        self._image_tokens: dict[tuple[str, str, str], ImageTokens | None] = {}

    def seconds(self, cell: CellSpec, stages: Sequence[str]) -> float:
        """Return the middle of the expected range."""
        low, high = self.span(cell, stages)
        return (low + high) / 2

    def span(self, cell: CellSpec, stages: Sequence[str]) -> Range:
        """Return the expected time of some stages of a cell, (low, high)."""
        if cell.model.id not in self.sizes:
            value = super().seconds(cell, stages)
            return value, value
        total = [0.0, 0.0]
        for stage in stages:
            kind, _, name = stage.partition("/")
            if kind == "train" and not cell.method.posthoc:
                low, high = self._training(cell)
            elif kind == "generate":
                low, high = self._answers(cell, name)
            else:
                low = high = super().seconds(cell, [stage])
            total[0], total[1] = total[0] + low, total[1] + high
        return total[0], total[1]

    def image_tokens(self, cell: CellSpec, dataset: str, split: str) -> ImageTokens | None:
        """Return the positions of the images of one of a cell's datasets, if the model decides them by size."""
        key = cell.model.id, dataset, split
        if key not in self._image_tokens:
            self._image_tokens[key] = of_data(cell.model, cell.dataset(dataset), cell.data_root, split)
        return self._image_tokens[key]

    def sizes_of(self, cell: CellSpec, dataset: str, split: str, largest: bool = False) -> Architecture | Measured:
        """Return a model's sizes with the positions of a dataset's mean or largest image, if they differ."""
        sizes = self.sizes[cell.model.id]
        if isinstance(sizes, Measured) and (tokens := self.image_tokens(cell, dataset, split)):
            return sizes.with_image_tokens(tokens.largest if largest else tokens.mean)
        return sizes

    def setting(self, cell: CellSpec, largest: bool = False) -> Setting:
        """Return what decides the time of a training, or with `largest` its memory."""
        assert cell.target is not None
        return setting_of(cell, self.sizes_of(cell, cell.target, "train", largest), self.count)

    def _training(self, cell: CellSpec) -> Range:
        assert cell.train is not None
        rate = self.rates.get((cell.model.id, cell.train.gradient_checkpointing))
        return training_seconds(self.setting(cell), self.gpu, samples_of(cell), rate)

    def _answers(self, cell: CellSpec, name: str) -> Range:
        dataset, sizes = cell.dataset(name), self.sizes_of(cell, name, cell.eval.split)
        items = cell.eval.limit or dataset.counts.get(cell.eval.split) or 0
        tokens = 13 if dataset.metric == "cider" else 4
        low, high = answer_seconds(sizes, self.gpu, int(items), cell.eval.batch_size, tokens)
        processes = 1 if cell.engine == "single" else self.count
        return low / processes, high / processes


def samples_of(cell: CellSpec) -> int:
    """Return the number of samples of a training, replayed ones too; 0 if its rows are unknown."""
    return samples(cell) or 0


def steps_of(cell: CellSpec) -> int:
    """Return the number of optimizer steps of a training."""
    assert cell.train is not None
    return cell.train.epochs * math.ceil(samples_of(cell) / cell.train.epochs / cell.train.batch_size)


def describe(plan: Sequence[Planned], request: Request, forecast: Forecast) -> str:
    """Return the hours, memory and disk of each model of a plan, as text.

    Raises:
        UserError: a training needs more memory than a GPU has; the message names a setting that fits.
    """
    blocks, refused = [], []
    for model in request.models:
        sizes = forecast.sizes.get(model.id)
        items = [item for item in plan if item.cell.model.id == model.id]
        if sizes is None or not items:
            continue
        blocks.append(_model(model, sizes, items, forecast))
        if trained := _heaviest(items, forecast):
            refused += _refusal(model, trained, forecast)
    if refused:
        raise UserError("\n".join([*blocks, *refused]))
    return "\n".join(blocks)


def _model(model: ModelSpec, sizes: Architecture | Measured, items: Sequence[Planned], forecast: Forecast) -> str:
    left = [item for item in items if not item.done]
    lines = [f"{model.name}: {sizes.total:,} parameters. {_checkpoint(model)}"]
    spans = [forecast.span(item.cell, item.missing) for item in left]
    low, high = sum(span[0] for span in spans), sum(span[1] for span in spans)
    card = f"{forecast.count} x {forecast.gpu.name}"
    lines.append(f"  time    {clock(low)} to {clock(high)} on {card} for {len(left)} of {len(items)} cells")
    trained = _heaviest(items, forecast)
    if trained is None:
        return "\n".join(lines)
    setting, heaviest = forecast.setting(trained.cell), forecast.setting(trained.cell, largest=True)
    flops = sample_flops(setting)
    one = forecast.span(trained.cell, ["train"])
    rate = forecast.rates.get((model.id, setting.checkpointing))
    basis = (
        f"measured: {rate:.2f} samples a second and GPU" if rate
        else f"at {UTILISATION[0]:.0%} to {UTILISATION[1]:.0%} of {forecast.gpu.peak:.0f} TFLOP/s"
    )
    lines += [
        f"  train   {setting.trained:,} parameters, {steps_of(trained.cell):,} steps of {setting.batch} samples: "
        f"{clock(one[0])} to {clock(one[1])} a cell, {basis}",
        f"          a sample of {setting.tokens} tokens takes {sum(flops.values()) / 1e12:.1f} TFLOP: "
        + ", ".join(f"{part} {value / 1e12:.2f}" for part, value in flops.items() if value),
    ]
    if setting.projector_trains:
        lines.append(
            "          the projector, below the language model, is trained: activation gradients cross all "
            f"{sizes.layers} blocks, and train.last_layers hardly changes the time"
        )
    if isinstance(sizes, Measured):
        assert trained.cell.target is not None
        tokens = forecast.image_tokens(trained.cell, trained.cell.target, "train")
        lines.append(
            f"  images  {tokens.mean} tokens on average, at most {tokens.largest}, in {tokens.images} training images "
            f"of {trained.cell.target}: time by the mean, memory by the largest" if tokens else
            f"  images  {sizes.image_tokens} tokens, those of a picture of 640 x 480 pixels: no data or checkpoint here"
        )
    parts = memory(heaviest)
    other = activations(heaviest, not setting.checkpointing)
    lines += [
        f"  memory  {sum(parts.values()) / GIB:.1f} of {forecast.gpu.memory:.0f} GiB per GPU "
        f"({trained.cell.method.id}, engine={setting.engine}, micro-batch {setting.micro_batch}): "
        + ", ".join(f"{part} {value / GIB:.2f}" for part, value in parts.items()),
        f"          activations {'without' if setting.checkpointing else 'with'} gradient checkpointing: "
        f"{other / GIB:.2f}; while loading, {setting.processes * 2 * sizes.total / GIB:.0f} GiB of host memory",
    ]
    deltas = sum(1 for item in items if item.cell.train is not None)
    size = 2 * setting.tuned
    lines.append(
        f"  disk    {deltas * size / 1e9:.1f} GB for {deltas} deltas of {size / 1e9:.2f} GB (a whole checkpoint: "
        f"{2 * sizes.total / 1e9:.1f} GB), {2 * 14 * setting.trained / 1e9:.1f} GB while training"
    )
    return "\n".join(lines)


def _heaviest(items: Sequence[Planned], forecast: Forecast) -> Planned | None:
    """Return the cell whose training takes the most memory."""
    trained = [item for item in items if item.cell.train is not None and not item.cell.method.posthoc]
    need = {item.id: sum(memory(forecast.setting(item.cell, largest=True)).values()) for item in trained}
    return max(trained, key=lambda item: need[item.id], default=None)


def _refusal(model: ModelSpec, heaviest: Planned, forecast: Forecast) -> list[str]:
    """Return why a training cannot be run on these GPUs, if it cannot."""
    setting = forecast.setting(heaviest.cell, largest=True)
    together = setting.micro_batch * setting.processes
    if setting.batch % together:
        sizes = [n for n in (8, 4, 2, 1) if setting.batch % (n * setting.processes) == 0]
        fix = f"train.micro_batch_size={sizes[0]}" if sizes else _divisors(setting)
        return [
            f"{model.name}: {setting.processes} GPUs with train.micro_batch_size={setting.micro_batch} do not divide "
            f"train.batch_size={setting.batch}. Use {fix}."
        ]
    if fits(setting, forecast.gpu):
        return []
    need = sum(memory(setting).values()) / GIB
    better = remedy(setting, forecast.gpu)
    larger = next((gpu.name for gpu in sorted(GPUS.values(), key=lambda g: g.memory) if fits(setting, gpu)), None)
    fix = f"It fits with {better}." if better else f"It fits a {larger}." if larger else "No known card fits it."
    room = f"{forecast.gpu.memory:.0f} GiB ({forecast.gpu.name})"
    return [f"{model.name} needs {need:.1f} GiB per GPU, more than {room}. {fix}"]


def _divisors(setting: Setting) -> str:
    return f"{' or '.join(str(n) for n in range(1, setting.processes) if setting.batch % n == 0)} GPUs"


def _checkpoint(model: ModelSpec) -> str:
    place = places.checkpoint(model)
    if not place.path.is_dir():
        return f"Checkpoint: not found ({model.checkpoint}; hub cache: {model.repository})."
    from benchmark.models.digest_cache import checkpoint_digest, known_digest

    digest = checkpoint_digest(places.folders(model), known_digest)
    name = place.revision or str(place.path)
    return f"Checkpoint: {name}, {f'digest {digest[:12]}' if digest else 'unverified'}."


def _rates(store: Store, gpu: Gpu) -> dict[tuple[str, bool], float]:
    """Return (model, gradient checkpointing) -> samples per second and GPU of finished cells on this card."""
    from benchmark.store.cells import read_cell

    found: dict[tuple[str, bool], list[float]] = {}
    for path in store.cells.glob("*/speed.json"):
        try:
            cell, speed = read_cell(path.parent), json.loads(path.read_text())
            rate = measured_rate(speed, gpu)
        except (UserError, OSError, ValueError, KeyError):
            continue
        if rate and cell.train is not None:
            found.setdefault((cell.model.id, cell.train.gradient_checkpointing), []).append(rate)
    return {key: sum(rates) / len(rates) for key, rates in found.items()}
