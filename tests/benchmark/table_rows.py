"""Small invented rows for the tests of tables and figures."""

from __future__ import annotations

import numpy as np

from benchmark.reporting.tables import RowResult
from eval.score import ItemScore

UPSTREAM = {"okvqa": "OKVQA", "textvqa": "TextVQA", "ocrvqa": "OCRVQA", "gqa": "GQA"}
TARGETS = {"flickr30k": "Flickr30k", "coco": "COCO-Caption"}
METHODS = {
    "zero_shot": ("Zero-shot", 0.9, 0.3),
    "full_ft": ("Full FT", 0.4, 0.9),
    "l2_reg": ("L2-Reg", 0.41, 0.9),
    "grafting": ("Grafting", 0.5, 0.85),
    "half_ft": ("Half FT", 0.6, 0.8),
    "dare": ("DARE", 0.55, 0.75),
    "tailor": ("Tailor", 0.75, 0.6),
    "spider": ("SPIDER", 0.85, 0.85),
}
DELTAS = {"full_ft": 0.0200, "l2_reg": 0.0199, "grafting": 0.0100}


def items_of(accuracy: float, n: int, seed: int) -> list[ItemScore]:
    """Return n items of which about that share is right; methods differ on few items."""
    ease = np.random.default_rng(7).random(n) * 0.9 + np.random.default_rng(seed).random(n) * 0.1
    return [ItemScore(f"i{k}", f"g{k // 2}", float(value < accuracy), "") for k, value in enumerate(ease)]


def row(
    method: str,
    model: str = "llava",
    target: str = "flickr30k",
    seeds: tuple[int, ...] = (0,),
    n: int = 60,
    **changes,
) -> RowResult:
    """Return one row; `changes` replace fields of the RowResult."""
    name, upstream, own = METHODS[method]
    tuned = method != "zero_shot"
    seeds = seeds if tuned else seeds[:1]
    accuracies = {**dict.fromkeys(UPSTREAM, upstream), target: own}
    items = {
        dataset: {seed: items_of(accuracy, n, 10 * seed + len(method)) for seed in seeds}
        for dataset, accuracy in accuracies.items()
    }
    fields = {
        "model": model, "model_name": {"llava": "LLaVA", "vila": "VILA"}.get(model, model),
        "method": method, "method_name": name, "target": target, "target_name": TARGETS[target],
        "items": items, "seeds": seeds, "tuned": tuned,
        "diagnostics": {seed: {"rms_delta": DELTAS[method]} for seed in seeds if method in DELTAS},
        "protocol": {dataset: f"accuracy of {dataset}" for dataset in accuracies},
    }
    return RowResult(**{**fields, **changes})


def rows(
    methods=tuple(METHODS), models=("llava", "vila"), targets=tuple(TARGETS), **options
) -> list[RowResult]:
    """Return a full grid of rows."""
    return [
        row(method, model, target, **options) for model in models for target in targets for method in methods
    ]
