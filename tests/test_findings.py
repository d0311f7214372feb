"""Every number in docs/findings.md and in README's findings stands in a published file; here is which one, and where.

A row is a fragment of the text with a field for each number, and the values that the fields must show. To change a
number in the text, change its source; to add one, add a row.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmark import results
from benchmark.store.cells import Store
from benchmark.studies import report
from benchmark.studies.prediction import RIGHT, other_form

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "results" / "pocket"
FINDINGS_MD = ROOT / "docs" / "findings.md"
V, L = "vila_pocket", "llava_pocket"
OTHERS = ("full_ft", "l2_reg", "grafting", "half_ft", "dare", "tailor")
ALPHA = "method.alpha"
# A number of its own; not the digits of a name (Flickr30k) and not those of a link's target.
NUMBER = re.compile(r"(?<![\w.^-])\d+(?:\.\d+)?(?:e-?\d+)?")
TARGET = re.compile(r"\]\([^)]*\)")

Row = tuple[Any, ...]  # template, value of each field


# ---------------------------------------------------------------------------------------------------------------
# Where numbers come from


@cache
def _frame(path: str) -> pd.DataFrame:
    return pd.read_csv(POCKET / path, dtype={"seeds": str})


def look_up(path: str, column: str, **where: Any) -> Any:
    """Return the one value of a column of results/pocket/<path> in the line that fits."""
    frame = _frame(path)
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, f"{path}, {where}: {len(frame)} lines"
    return frame[column].item()


def table(name: str, model: str, target: str, method: str, metric: str = "H", column: str = "value") -> Any:
    """Return a cell of tables/<name>.csv."""
    where = {"model": model, "target": target, "method": method, "metric": metric}
    return look_up(f"tables/{name}.csv", column, **where)


def seeds(name: str) -> str:
    """Return the seeds of a table's trained rows, "0, 1, 2"."""
    frame = _frame(f"tables/{name}.csv")
    (found,) = set(frame.loc[frame.method != "zero_shot", "seeds"])
    return ", ".join(found.split())


def plane(model: str, panel: str, method: str, metric: str = "H", alpha: float | None = None) -> float:
    """Return a point of the plane of A^S and A^T, for WiSE-FT that of an alpha."""
    where = {"method": method, "panel": panel, "curve": alpha is not None} | ({ALPHA: alpha} if alpha else {})
    return look_up(f"figures/plane_{model}.csv", metric, **where)


def plane_seed() -> int:
    """Return the seed of the planes: the one with which SPIDER has the same H in Table 5."""
    found = set()
    for model in (V, L):
        by_seed = table("table5", model, "flickr30k", "spider", column="by_seed").split()
        number = by_seed.index(f"{plane(model, 'Flickr30k', 'spider'):.4f}")
        found.add(int(seeds("table5").split(", ")[number]))
    (seed,) = found
    return seed


def sweep_seed() -> int:
    """Return the seed of the sweeps."""
    (seed,) = pd.concat(_frame(f"sweeps/{name}.csv").seeds for name in ("fig5", "fig6", "fig7", "forgetting")).unique()
    return int(seed)


def best_alpha(model: str, panel: str) -> float:
    """Return where WiSE-FT's H is highest."""
    frame = _frame(f"figures/plane_{model}.csv")
    curve = frame[(frame.panel == panel) & (frame.method == "wise_ft")]
    return curve.loc[curve.H.idxmax(), ALPHA]


def sweep(name: str, axis: str, model: str, value: int, method: str, metric: str = "H", target="Flickr30k") -> float:
    """Return a point of a line plot, figures/<name>.csv."""
    where = {"model_name": model, "target_name": target, axis: value, "method": method, "metric": metric}
    return look_up(f"figures/{name}.csv", "value", **where)


epochs, layers, batch = (
    partial(sweep, name, f"train.{axis}")
    for name, axis in (("fig5", "epochs"), ("fig6", "last_layers"), ("fig7", "batch_size"))
)
forgetting = partial(sweep, "forgetting", "epoch")
VILA, LLAVA = "VILA (pocket)", "LLaVA (pocket)"


def end(name: str, column: str, last: bool = True) -> int:
    """Return the last or first point of a sweep."""
    values = _frame(f"figures/{name}.csv")[column]
    return int(values.max() if last else values.min())


def rate(model: str, method: str, learning_rate: float, metric: str = "H") -> float:
    """Return a line of the learning-rate study, a mean over both captioning targets."""
    return look_up(f"rates/{model}.csv", metric, method=method, learning_rate=learning_rate)


def chosen(model: str) -> float:
    """Return the learning rate that the protocol fixed."""
    return look_up(f"rates/{model}.csv", "learning_rate", method="full_ft", chosen=1)


def grid_end(model: str) -> float:
    """Return the largest learning rate of the study."""
    return _frame(f"rates/{model}.csv").learning_rate.max()


def parameter(method: str, name: str) -> float:
    """Return a method's parameter, the one that the published cells have."""
    return yaml.safe_load((ROOT / "conf" / "method" / f"{method}.yaml").read_text())["params"][name]


def card(model: str, dataset: str, column: str) -> float:
    """Return a baseline from a base model's card."""
    lines = (ROOT / "benchmark" / "checkpoints" / model / "README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heading = next(row for row in cells if row[0] == "set")
    return float(next(row for row in cells if row[0] == dataset)[heading.index(column)])


def protocol(pattern: str) -> str:
    """Return what protocol.md says."""
    return re.search(pattern, (POCKET / "protocol.md").read_text())[1]


@cache
def verdicts() -> dict[str, str]:
    """Return claim -> verdict, as the report on the published results has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "predictions", lambda groups: {})  # answers and images to browse, which take longest
        content = report.collect([f"results={POCKET}"], Store(POCKET))
    return {item.claim: item.verdict for item in content.verdicts}


def share(one: float, other: float) -> float:
    """Return one as a percentage of other."""
    return 100 * one / other


def grafting_within() -> int:
    """Return the percentage within which Table 5's note says that Grafting's weights end."""
    lines = (POCKET / "tables" / "table5.md").read_text().splitlines()
    note = next(line for line in lines if line.startswith("- Grafting:"))
    pairs = re.findall(r": ([\d.]+) and ([\d.]+)", note)
    assert len(pairs) == 4
    assert all(abs(float(own) / float(full) - 1) < 0.01 for own, full in pairs)
    return int(re.search(r"within (\d+) % of Full FT", note)[1])


def blocks(name: str) -> int:
    """Return the number of model and target pairs of a table."""
    return len(_frame(f"tables/{name}.csv").groupby(["model", "target"]))


# ---------------------------------------------------------------------------------------------------------------
# The rows


def _t5(target: str, method: str, metric: str) -> tuple[float, float]:
    return tuple(table("table5", model, target, method, metric) for model in (V, L))


def _keeps(target: str) -> tuple[float, float]:
    both = zip(_t5(target, "spider", "A_S"), _t5(target, "zero_shot", "A_S"), strict=True)
    return tuple(share(a, b) for a, b in both)


def _pairs(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [value for pair in zip(one, other, strict=True) for value in pair]


def scale() -> list[Row]:
    rows = int(protocol(r"flickr30k \| train \| (\d+)"))
    steps = rows // int(protocol(r" batch_size (\d+)")) * int(protocol(r"epochs (\d+)"))
    return [("the default scale: {} training rows, {} steps.", rows, steps)]


def captioning() -> list[Row]:
    t5 = partial(table, "table5")
    untuned = _t5("flickr30k", "zero_shot", "A_T")
    return [
        ("## Captioning: Table {}, mean of seeds {}", 5, seeds("table5")),
        ("[Table {}](../results/pocket/tables/table5.md), made by `make table{} SEEDS={}`", 5, 5,
         seeds("table5").replace(" ", "")),
        ("VILA's A^S from {:.1f} to {:.1f} (Flickr30k) and {:.1f} (COCO), and LLaVA's from {:.1f} to {:.1f} and {:.1f}",
         *(t5(m, t, x, "A_S") for m in (V, L)
           for t, x in (("coco", "zero_shot"), ("flickr30k", "full_ft"), ("coco", "full_ft")))),
        ("{:.1f} against {:.1f} (VILA) and {:.1f} against {:.1f} (LLaVA), both significant. "
         "It keeps {:.0f} and {:.0f} %",
         *_pairs(_t5("coco", "spider", "H"), _t5("coco", "full_ft", "H")), *_keeps("coco")),
        ("with LLaVA, Tailor is ({:.1f})", t5(L, "coco", "tailor")),
        ("less than half of its style: CIDEr {:.0f} and {:.0f}. Full FT brings them to {:.0f} and {:.0f}.", *untuned,
         *_t5("flickr30k", "full_ft", "A_T")),
        ("SPIDER again keeps {:.0f} and {:.0f} % of A^S. With VILA it ends at a CIDEr of {:.0f}, below the untuned "
         "model, and at an H of {:.1f}, where Full FT has {:.1f} and the untuned model {:.1f}.", *_keeps("flickr30k"),
         t5(V, "flickr30k", "spider", "A_T"),
         *(t5(V, "flickr30k", method) for method in ("spider", "full_ft", "zero_shot"))),
        ("With LLaVA it ends at {:.0f} and at an H of {:.1f}, within noise of Full FT's {:.1f}.",
         t5(L, "flickr30k", "spider", "A_T"), t5(L, "flickr30k", "spider"), t5(L, "flickr30k", "full_ft")),
        ("below the untuned VILA ({:.0f} and {:.0f})",
         *(t5(V, "flickr30k", method, "A_T") for method in ("half_ft", "tailor"))),
        ("**Tailor** keeps {:.0f} % of the changes, and with them the most of A^S in all {} blocks.",
         100 * parameter("tailor", "keep"), blocks("table5")),
        ("it gains {:.0f} points of CIDEr over zero-shot with LLaVA and loses {:.0f} with VILA",
         t5(L, "coco", "tailor", "A_T") - t5(L, "coco", "zero_shot", "A_T"),
         t5(V, "coco", "zero_shot", "A_T") - t5(V, "coco", "tailor", "A_T")),
        ("**DARE** keeps {:.0f} %", 100 * parameter("dare", "keep")),
        ("than Full FT in all {} blocks", blocks("table5")),
        ("does not act at {}: its weights end within {} %", parameter("grafting", "strength"), grafting_within()),
    ]


def question_answering() -> list[Row]:
    t6 = partial(table, "table6")

    def both(target: str, method: str, metric: str) -> tuple[float, float]:
        return t6(V, target, method, metric), t6(L, target, method, metric)

    return [
        ("## Question answering: Table {}, mean of seeds {}", 6, seeds("table6")),
        ("[Table {}](../results/pocket/tables/table6.md), made by `make table{} SEEDS={}`", 6, 6,
         seeds("table6").replace(" ", "")),
        ("Zero-shot scores are {:.0f} (VILA) and {:.0f} (LLaVA).", *both("iconqa", "zero_shot", "A_T")),
        ("per kind of question scores {:.0f}, the commonest answer to the same question {:.0f} ([model card]"
         "(../benchmark/checkpoints/vila_pocket/README.md))",
         *(card(V, "iconqa", column) for column in ("majority", "lookup"))),
        ("Full FT reaches {:.0f} and {:.0f}. SPIDER reaches {:.0f} and {:.0f}, but keeps A^S at {:.1f} and {:.1f}, "
         "where Full FT ends at {:.1f} and {:.1f}.",
         *both("iconqa", "full_ft", "A_T"), *both("iconqa", "spider", "A_T"),
         *both("iconqa", "spider", "A_S"), *both("iconqa", "full_ft", "A_S")),
        ("within noise of Full FT with both models ({:.1f} against {:.1f}, and {:.1f} against {:.1f})",
         *_pairs(both("iconqa", "spider", "H"), both("iconqa", "full_ft", "H"))),
        ("L2-Reg is significantly above both ({:.1f})", t6(L, "iconqa", "l2_reg")),
        ("**ScienceQA is near.** Zero-shot scores are {:.0f} and {:.0f}.", *both("scienceqa", "zero_shot", "A_T")),
        ("Tailor's H is the best ({:.1f} against {:.1f} for Full FT, significant); SPIDER's {:.1f} is within noise",
         *(t6(L, "scienceqa", method) for method in ("tailor", "full_ft", "spider"))),
    ]


def control() -> list[Row]:
    def best(panel: str, model: str) -> tuple[float, float]:
        alpha = best_alpha(model, panel)
        return plane(model, panel, "wise_ft", alpha=alpha), alpha

    def valley(model: str) -> float:
        """Return where WiSE-FT's A^T on Flickr30k is lowest."""
        frame = _frame(f"figures/plane_{model}.csv")
        curve = frame[(frame.panel == "Flickr30k") & (frame.method == "wise_ft")]
        return curve.loc[curve.A_T.idxmin(), ALPHA]

    def at(model: str, method: str, alpha: float | None = None) -> tuple[float, float]:
        return tuple(plane(model, "Flickr30k", method, metric, alpha) for metric in ("A_T", "A_S"))

    return [
        ("## The control: WiSE-FT, seed {}", plane_seed()),
        ("WiSE-FT reaches H {:.1f} (VILA, at {:.1f} of the way) and {:.1f} (LLaVA, at {:.1f}). SPIDER has {:.1f} and "
         "{:.1f}.", *best("COCO-Caption", V), *best("COCO-Caption", L),
         *(plane(model, "COCO-Caption", "spider") for model in (V, L))),
        ("WiSE-FT reaches {:.1f} (at {:.1f}) and {:.1f} (at {:.1f}), SPIDER {:.1f} and {:.1f}.", *best("IconQA", V),
         *best("IconQA", L), *(plane(model, "IconQA", "spider") for model in (V, L))),
        ("WiSE-FT's A^T falls from {:.1f} to {:.1f} (at {:.1f}) before it rises to Full FT's {:.1f}.",
         at(V, "zero_shot")[0], at(V, "wise_ft", valley(V))[0],
         valley(V), at(V, "full_ft")[0]),
        ("SPIDER's {:.1f} at an A^S of {:.1f} lies below the untuned model in both.", *at(V, "spider")),
        ("SPIDER's {:.1f} at {:.1f} lies a little above the line from WiSE-FT at {} ({:.1f} at {:.1f}) to WiSE-FT "
         "at {} ({:.1f} at {:.1f}).", *at(L, "spider"), 0.5, *at(L, "wise_ft", 0.5), 0.6, *at(L, "wise_ft", 0.6)),
    ]


@cache
def survey(model: str, target: str = "flickr30k") -> pd.DataFrame:
    """Return the survey's readings of a model on a target, by row."""
    (path,) = (POCKET / "studies").glob(f"survey_{model}-{target}*.csv")
    return pd.read_csv(path).set_index("row")


def kept(row: str, level: int = 100, target: str = "flickr30k") -> float:
    """Return what a row of VILA's survey keeps at a share of Full FT's gain."""
    return survey(V, target)[f"kept_{level}"][row]


def survey_file() -> dict[str, Any]:
    """Return what conf says about the survey."""
    return yaml.safe_load((ROOT / "conf" / "figure" / "survey.yaml").read_text())


def equal_learning() -> list[Row]:
    asked = survey_file()
    every = sum(len(rows) for rows in asked["groups"].values())
    return [
        ("## Equal learning: VILA on Flickr30k, seed {}", asked["seeds"][0]),
        ("All {} rows are there", every if len(survey(V)) == every else None),
        ("keeps {:.2f} at {} % of Full FT's gain, where Full FT keeps {:.2f}; the untuned model has {:.2f}",
         kept("ewc"), 100, kept("full_ft"), table("table5", V, "flickr30k", "zero_shot", "A_S")),
        ("samples of the source sets ({:.2f}) and nearly as much with generic descriptions ({:.2f})",
         kept("replay_source"), kept("replay_generic")),
        ("With the projector frozen, Full FT keeps {:.1f} at {} % of the gain; with the MLPs alone it keeps {:.1f}.",
         kept("projector_frozen"), 100, kept("mlp")),
        ("With attention alone it keeps {:.1f} at {} %, with gate and up alone it never learns {} %",
         kept("attention", 90), 90, 75),
        ("At {} % of the gain, LiNeS keeps {:.2f}, Tailor {:.2f} and Fisher merging {:.2f}, Full FT {:.2f}", 90,
         *(kept(row, 90) for row in ("lines", "tailor", "fisher", "full_ft"))),
        ("At {} % of the gain, SHiRA keeps {:.2f} and MiLoRA {:.2f}", 90, kept("shira", 90), kept("milora", 90)),
        ("looks at source samples, {:.2f}", kept("lora_null", 90)),
        ("main directions, keeps {:.2f}", kept("pissa", 90)),
        ("LwF keeps {:.2f} at {} % of the gain", kept("lwf", 90), 90),
        ("EAFT keeps {:.2f}", kept("eaft", 90)),
        ("that the model gives it, never learn {} %", 75),
        ("At {} % of the gain, random elements keep {:.1f}, smallest weights {:.1f}, GMT {:.1f} and Half FT {:.1f}",
         100, *(kept(row) for row in ("half_ft_elements", "spider_magnitude", "gmt", "half_ft"))),
        ("the largest weights keep {:.1f}", kept("largest_weights")),
        ("do not reach {} % of the gain. SPIDER with", 75),
        ("reaches {} % and keeps {:.2f} there", 75, kept("spider_code", 75)),
        ("do not reach {} % of the gain. Houlsby adapters reach it and keep {:.2f}", 75, kept("houlsby", 75)),
    ]


def equal_learning_coco() -> list[Row]:
    asked = survey_file()
    at = partial(kept, target="coco")
    best, time = survey(V, "coco")["H"], survey(V, "coco")["time"]
    return [
        ("## Equal learning: VILA on COCO, seed {}", asked["seeds"][0]),
        ("{} of the {} rows are there. The untuned model has an A^S of {:.2f}", len(best),
         sum(len(rows) for rows in asked["groups"].values()), table("table5", V, "coco", "zero_shot", "A_S")),
        ("At {} % of Full FT's gain, where Full FT keeps {:.2f}, replay of source samples keeps {:.2f}, Tailor {:.2f}, "
         "an alpha per tensor {:.2f}, Fisher merging {:.2f}, EWC {:.2f}, generic replay {:.2f}, LiNeS {:.2f} and "
         "WiSE-FT {:.2f}", 100, *map(at, ("full_ft", "replay_source", "tailor", "wise_ft_tensors", "fisher", "ewc",
                                  "replay_generic", "lines", "wise_ft"))),
        ("SPIDER keeps {:.2f}, G_gamma {:.2f}, SPIDER with the sum of the gradients {:.2f} and MoFO {:.2f}",
         *map(at, ("spider", "spider_gradient", "spider_code", "mofo"))),
        ("random elements keep {:.2f} and smallest weights {:.2f}, within noise of it. SPU learns {} % and keeps "
         "{:.2f} there", at("half_ft_elements"), at("spider_magnitude"), 75, at("spu", 75)),
        ("Model-Dowser and the smallest tenth of the weights never learn {} %", 75),
        ("LwF keeps {:.2f} at {} % of the gain, TALR {:.2f} and EAFT {:.2f}", at("lwf"), 100, at("talr"), at("eaft")),
        ("and TALR take {:.1f} times as long", time["talr"]),
        ("DFT keeps {:.2f}, significantly less, and ASFT never learns {} %", at("dft"), 75),
        ("keeps {:.2f} and is the only one of its kind", at("pissa")),
        ("L2-Reg keeps {:.2f} and Grafting {:.2f} at {} %", at("l2_reg"), at("grafting"), 100),
        ("Half FT never learns {} % of the gain. With the projector frozen, Full FT learns {} % but not {} %",
         75, 75, 90),
        ("LoRA reaches {} % and keeps {:.2f} there", 75, at("lora", 75)),
        ("generic replay's**, {:.1f}, at {:.0f} of {} samples replayed", best["replay_generic"],
         16 * survey(V, "coco")["best_at"]["replay_generic"], 16),
        ("Full FT's best is {:.1f}, SPIDER's {:.1f}, WiSE-FT's {:.1f}, EWC's {:.1f} and Tailor's {:.1f}",
         *(best[row] for row in ("full_ft", "spider", "wise_ft", "ewc", "tailor"))),
    ]


def advice() -> list[Row]:
    def both(row: str) -> tuple[float, float]:
        return kept(row), kept(row, target="coco")

    def replayed(share: float) -> list[float]:
        curves = (survey_points(target, row) for row in ("replay_generic", "replay_source")
                  for target in ("flickr30k", "coco"))
        return [float(curve.query(f"strength == {share}")["A_S"].iloc[0]) for curve in curves]

    cost = survey(V)
    return [
        ("small model, two caption targets and seed {}. Full FT keeps {:.2f} (Flickr30k) and {:.2f} (COCO) of the "
         "untuned model's {:.2f}", 0, *both("full_ft"), table("table5", V, "coco", "zero_shot", "A_S")),
        ("multiples of Full FT's {:.0f} and {:.0f} copies", cost["time"]["full_ft"], cost["memory"]["full_ft"]),
        ("A quarter of each batch takes {:.1f} to {:.1f} times as long", cost["time"]["replay_generic"],
         cost["time"]["replay_source"]),
        ("keep {:.2f} and {:.2f}, samples of the source sets {:.2f} and {:.2f}", *replayed(0.25)),
        ("they keep {:.2f} and {:.2f}, and {:.2f} and {:.2f}", *replayed(0.75)),
        ("from such descriptions: {:.2f} and {:.2f} at {} % of the gain for {:.2f} times the time and a memory of "
         "{:.1f}",
         *both("ewc"), 100, cost["time"]["ewc"], cost["memory"]["ewc"]),
        ("At {} % of the gain, LiNeS keeps {:.2f} and {:.2f} and trains nothing. On COCO Tailor and WiSE-FT do as well "
         "({:.2f} and {:.2f})",
         100, *both("lines"), kept("tailor", target="coco"), kept("wise_ft", target="coco")),
        ("takes {:.2f} of the time and {:.2f} of memory and keeps {:.2f} on Flickr30k; random SHiRA takes {:.2f} and "
         "keeps {:.2f}. On COCO neither learns all that Full FT learns, only {} and {} % of it",
         cost["time"]["projector_frozen"], cost["memory"]["projector_frozen"], kept("projector_frozen"),
         cost["memory"]["shira"], kept("shira"), 75, 90),
        ("It takes {:.2f} of memory and keeps {:.2f} on Flickr30k; on COCO it never learns {} %",
         cost["memory"]["lora"], kept("lora"), 90),
        ("SPIDER keeps {:.2f} on COCO and never learns {} % on Flickr30k. Half FT keeps {:.2f} on Flickr30k and never "
         "learns {} % on COCO", kept("spider", target="coco"), 75, kept("half_ft"), 75),
        ("at the three larger ones they keep at most {:.2f} of A^S", max(
            survey_points("flickr30k", row)["A_S"].iloc[2:].max()
            for row in ("prompt_tuning", "prefix", "ia3", "ln_tuning"))),
        ("At {} of the model's rate, Full FT's own curve keeps {:.2f} on COCO",
         survey_file()["rates"][1],
         sorted(survey_points("coco", "full_ft")["A_S"])[3]),
    ]


def survey_points(target: str, row: str) -> pd.DataFrame:
    """Return the points of a curve of VILA's survey, in the order of the curve."""
    (path,) = (POCKET / "figures").glob(f"survey_{V}-{target}*.csv")
    points = pd.read_csv(path)
    return points[points["row"] == row]


def correlation(measure: str, column: str = "within") -> float:
    """Return a rank correlation with forgetting, or another column of its line."""
    return look_up("studies/predict.csv", column, measure=measure)


def prediction() -> list[Row]:
    def span(measure: str) -> tuple[float, ...]:
        return tuple(correlation(measure, f"within{end}") for end in ("", "_low", "_high"))

    return [
        ("Over {} cells of VILA on Flickr30k and COCO", int(correlation("kl", "cells"))),
        ("{:.2f} ({:.2f} to {:.2f}) for the CKA lost", *span("cka_lost")),
        ("{:.2f} ({:.2f} to {:.2f}) for the distance of the weights ({} cells)", *span("distance"),
         int(correlation("distance", "cells"))),
        ("{:.2f} ({:.2f} to {:.2f}) for KL(tuned || base)", *span("kl")),
        ("in all {} cells of {} pairs of model and target, {:.2f}", *(int(correlation("form_lost", name)) for name in (
            "cells", "groups")), correlation("form_lost")),
    ]


SELECTED = ("spider_idm", "spider_gradient", "spider_magnitude", "half_ft_elements")


def modules() -> list[Row]:
    assert seeds("table2") == seeds("table3") == seeds("table4")
    t2, t3, t4 = (partial(table, f"table{number}", V) for number in (2, 3, 4))
    return [
        ("cost: Tables {}, {}, {}, VILA, mean of seeds {}", 2, 3, 4, seeds("table3")),
        ("[Table {}](../results/pocket/tables/table3.md)", 3),
        ("(H {:.1f}; G_gamma {:.1f}, smallest weights {:.1f}, random {:.1f})", *(t3("coco", one) for one in SELECTED)),
        ("are the worst ({:.1f} and {:.1f}; smallest weights {:.1f}, random {:.1f})",
         *(t3("flickr30k", one) for one in SELECTED)),
        ("[Table {}](../results/pocket/tables/table4.md)", 4),
        ("lowers H from {:.1f} to {:.1f} on COCO and from {:.1f} to {:.1f} on Flickr30k",
         *(t4(target, one) for target in ("coco", "flickr30k") for one in ("spider_idm", "spider"))),
        ("[Table {}](../results/pocket/tables/table2.md): SPIDER holds {:.1f} times", 2,
         t2("flickr30k", "spider", "memory")),
        ("(w\\* in {} bits and the accumulated gradient)", round(32 * t2("flickr30k", "l2_reg", "memory"))),
        ("takes {:.2f} times as long", t2("flickr30k", "spider", "step_time")),
    ]


def variants() -> list[Row]:
    v = partial(table, "variants", V)
    return [
        ("## Named variants: VILA, seed {}", seeds("variants")),
        ("as in the released code, H on Flickr30k is {:.1f} instead of {:.1f}, and on COCO {:.1f} instead of {:.1f}.",
         *(v(target, one) for target in ("flickr30k", "coco") for one in ("spider_code", "spider"))),
        ("With the last gradient alone it is far worse: {:.1f} and {:.1f}.", v("flickr30k", "spider_instant"),
         v("coco", "spider_instant")),
        ("on Flickr30k ({:.1f}) and worse on COCO ({:.1f}).", v("flickr30k", "spider_posthoc"),
         v("coco", "spider_posthoc")),
    ]


def sweeps() -> list[Row]:
    few, many = end("fig6", "train.last_layers", last=False), end("fig6", "train.last_layers")
    short, long = end("fig5", "train.epochs", last=False), end("fig5", "train.epochs")
    small, large = end("fig7", "train.batch_size", last=False), end("fig7", "train.batch_size")
    return [
        ("## Epochs, layers, batch size: Flickr30k, seed {}", sweep_seed()),
        ("({:.1f} with {}, {:.1f} with {}; [Fig. {}](../results/pocket/figures/fig6.csv))",
         layers(VILA, few, "spider"), few, layers(VILA, many, "spider"), many, 6),
        ("Full FT's H is {:.1f} after {} epochs and {:.1f} after {}, SPIDER's {:.1f} and {:.1f} "
         "([Fig. {}](../results/pocket/figures/fig5.csv)).", epochs(LLAVA, short, "full_ft"), short,
         epochs(LLAVA, long, "full_ft"), long, *(epochs(LLAVA, one, "spider") for one in (short, long)), 5),
        ("A batch of {} instead of {} halves", large, small),
        ("Full FT's H falls from {:.1f} to {:.1f} with VILA and from {:.1f} to {:.1f} with LLaVA, where SPIDER is then "
         "ahead of it ({:.1f}) and Half FT ahead of both ({:.1f}; [Fig. {}](../results/pocket/figures/fig7.csv)).",
         *(batch(model, one, "full_ft") for model in (VILA, LLAVA) for one in (small, large)),
         batch(LLAVA, large, "spider"), batch(LLAVA, large, "half_ft"), 7),
        ("VILA's A^S on COCO is {:.1f} then, and {:.1f} after all {}.",
         *(forgetting(VILA, one, "full_ft", "A_S", "COCO-Caption") for one in (1, end("forgetting", "epoch"))),
         end("forgetting", "epoch")),
    ]


def rates() -> list[Row]:
    start, top = chosen(V), grid_end(V)
    return [
        ("## Learning rate, on validation, seed {}", protocol(r"seed (\d+); targets")),
        ("is as high as Full FT's: {:.1f} and {:.1f} with VILA, {:.1f} and {:.1f} with LLaVA.",
         *(rate(model, method, chosen(model)) for model in (V, L) for method in ("spider", "full_ft"))),
        ("it rises from {:.1f} at the chosen {} to {:.1f} at {}, the largest rate of the grid; Full FT's falls "
         "from {:.1f} to {:.1f}.", rate(V, "spider", start), start, rate(V, "spider", top), top,
         rate(V, "full_ft", start), rate(V, "full_ft", top)),
    ]


@cache
def form(model: str, target: str) -> dict[str, float]:
    """Return what Full FT of seed 0 lost of A^S, and the share of its answers in another form: all, and those lost."""
    frames = results.load("results/pocket")
    (tuned, *more) = [one for one in frames.cells.cell.unique() if one.startswith(f"{model}-{target}-full_ft-s0-")]
    (base,) = [one for one in frames.cells.cell.unique() if re.fullmatch(rf"{model}-zero_shot-\w{{8}}", one)]
    assert not more
    columns = ["dataset", "item_id", "answer", "score"]
    after, before = (frames.items.loc[frames.items.cell == one, columns] for one in (tuned, base))
    both = after.merge(before, on=["dataset", "item_id"], suffixes=("", "_before"))
    both = both[both.dataset.isin(["okvqa", "textvqa", "ocrvqa", "gqa"])]
    sets = both.groupby("dataset")
    return {
        "before": float(sets.answer_before.apply(other_form).mean()),
        "after": float(sets.answer.apply(other_form).mean()),
        "lost": other_form(both.answer[(both.score_before >= RIGHT) & (both.score < RIGHT)]),
        "points": 100 * float((sets.score_before.mean() - sets.score.mean()).mean()),
    }


def forms() -> list[Row]:
    cells = {place: form(*place) for place in product((V, L), ("flickr30k", "coco", "iconqa", "scienceqa"))}
    letters = cells.pop((L, "iconqa"))
    assert all(cell["before"] == 0 for cell in (*cells.values(), letters))
    return [
        ("## Form or content: Full FT, seed {}", 0),
        ("at most {:.1f} % of the answers", max(cell["after"] for cell in cells.values())),
        ("{:.0f} % of the source questions with a letter, and {:.0f} % of those that it got wrong and the untuned "
         "model right. So most of the {:.1f} points", letters["after"], letters["lost"], letters["points"]),
        ("still loses {:.1f} points when each question comes after a solved one, and {:.2f} % of its answers have "
         "another form, where {:.2f} % had", *asked_twice(L, "iconqa")[["lost_shown", "other_shown", "other"]]),
        ("Half FT of VILA wins {:.2f} points back on Flickr30k and {:.2f} on COCO",
         *(asked_twice(V, target, "half_ft")["back"] for target in ("flickr30k", "coco"))),
        ("the untuned ones fall from {:.1f} to {:.1f} (VILA) and from {:.1f} to {:.1f} (LLaVA)",
         *(asked_twice(model, "", "zero_shot")[column] for model in (V, L) for column in ("A_S", "A_S_shown"))),
    ]


def asked_twice(model: str, target: str, method: str = "full_ft") -> pd.Series:
    """Return a line of studies/form.csv."""
    found = pd.read_csv(POCKET / "studies" / "form.csv", keep_default_na=False).set_index(["model", "target", "method"])
    return found.loc[(model, target, method)]


def claims() -> list[Row]:
    found = verdicts()
    by_verdict = {
        name: [claim for claim, verdict in found.items() if verdict == name]
        for name in ("holds", "contradicted", "not shown")
    }
    said = [(len(one), "; ".join(one)) for one in by_verdict.values()]
    return [
        ("Of {} claims of the paper and a control of ours", len(found) - 1),
        ("{} hold: {}.", *said[0]),
        ("{} are contradicted in at least one group: {}.", *said[1]),
        ("{} are not shown: {}.", *said[2]),
    ]


def readme() -> list[Row]:
    said = " ".join(section(FINDINGS_MD, "The paper's claims").split())
    counts = re.search(
        r"Of (\d+) claims of the paper and a control of ours: - (\d+) hold.* - (\d+) are contradicted.* - (\d+) are "
        r"not shown", said,
    )
    return [
        ("[Table {}](results/pocket/tables/table5.md), mean of seeds {}, unless", 5, seeds("table5")),
        ("On COCO, Full FT takes A^S from {:.1f} to {:.1f} with VILA and from {:.1f} to {:.1f} with LLaVA.",
         *(_t5("coco", method, "A_S")[number] for number in (0, 1) for method in ("zero_shot", "full_ft"))),
        ("H is {:.1f} against Full FT's {:.1f} with VILA, and {:.1f} against {:.1f} with LLaVA.",
         *_pairs(_t5("coco", "spider", "H"), _t5("coco", "full_ft", "H"))),
        ("(VILA, seed {}), EWC keeps {:.2f} and {:.2f} of A^S, Full FT {:.2f} and {:.2f} (Flickr30k, COCO).", 0,
         *(kept(row, target=target) for row in ("ewc", "full_ft") for target in ("flickr30k", "coco"))),
        ("On Flickr30k it does not: H is {:.1f} and {:.1f} against Full FT's {:.1f} and {:.1f}, and with VILA its A^T "
         "of {:.1f} is below the untuned model's {:.1f}.", *_t5("flickr30k", "spider", "H"),
         *_t5("flickr30k", "full_ft", "H"),
         *(table("table5", V, "flickr30k", method, "A_T") for method in ("spider", "zero_shot"))),
        ("reaches an H of {:.1f} and {:.1f} on COCO, above SPIDER's {:.1f} and {:.1f} (seed {})",
         *(plane(model, "COCO-Caption", "wise_ft", alpha=best_alpha(model, "COCO-Caption")) for model in (V, L)),
         *(plane(model, "COCO-Caption", "spider") for model in (V, L)), plane_seed()),
        ("Of {} claims of the paper and a control of ours, {} hold here, {} are contradicted in at least one group and "
         "{} are not shown",
         *counts.groups()),
    ]


# Heading -> its rows.
FINDINGS: dict[str, Callable[..., list[Row]]] = {
    "What the pocket numbers say": scale,
    "Captioning": captioning,
    "Question answering": question_answering,
    "The control": control,
    "Equal learning: VILA on Flickr30k": equal_learning,
    "Equal learning: VILA on COCO": equal_learning_coco,
    "What to do first": advice,
    "What predicts forgetting": prediction,
    "Selection rules": modules,
    "Named variants": variants,
    "Epochs, layers, batch size": sweeps,
    "Form or content": forms,
    "Learning rate": rates,
    "The paper's claims": claims,
}


# ---------------------------------------------------------------------------------------------------------------
# What words say without a number


def _frames(name: str, metric: str = "H", **where: Any) -> pd.DataFrame:
    frame = _frame(f"tables/{name}.csv")
    frame = frame[(frame.metric == metric) & (frame.method != "zero_shot")]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame.set_index("method")


def _ranked(name: str, metric: str = "H", **where: Any) -> list[str]:
    return list(_frames(name, metric, **where).value.sort_values(ascending=False).index)


def _above_line(model: str, first: float, second: float) -> bool:
    """Return whether SPIDER keeps more than the line between two points of WiSE-FT where that has learned as much."""
    kept, learned = (plane(model, "Flickr30k", "spider", metric) for metric in ("A_S", "A_T"))
    (low_t, low_s), (high_t, high_s) = (
        [plane(model, "Flickr30k", "wise_ft", metric, alpha) for metric in ("A_T", "A_S")] for alpha in (first, second)
    )
    return kept > np.interp(learned, (low_t, high_t), (low_s, high_s))


def _starred(name: str, target: str, method: str) -> list[bool]:
    return [bool(table(name, model, target, method, "H", "star")) for model in (V, L)]


def _ahead(level: int, *rows: str) -> bool:
    """Return whether rows keep significantly more than Full FT on COCO."""
    return bool((survey(V, "coco").loc[list(rows), f"delta_{level}_low"] > 0).all())


def _learns(row: str, level: int, target: str = "coco") -> bool:
    """Return whether a row reaches a share of Full FT's gain."""
    return bool(pd.notna(survey(V, target)[f"kept_{level}"][row]))


def _noise(level: int, *rows: str) -> bool:
    """Return whether the survey's intervals of rows' differences from Full FT contain 0."""
    found = survey(V).loc[list(rows)]
    return bool(((found[f"delta_{level}_low"] <= 0) & (found[f"delta_{level}_high"] >= 0)).all())


def _unreached(*rows: str) -> bool:
    """Return whether rows do not reach the survey's lowest level."""
    return bool(survey(V).loc[list(rows), "kept_75"].isna().all())


FACTS: dict[str, Callable[[], bool]] = {
    "stay at Full FT's level at all three shares":
        lambda: all(_noise(level, "l2_reg", "grafting") for level in (100, 90, 75)),
    "all significantly more than Full FT":
        lambda: (survey(V).loc[["lines", "tailor", "fisher"], "delta_90_low"] > 0).all(),
    "both significantly more than Full FT, and LoRA-Null, which":
        lambda: (survey(V).loc[["shira", "milora", "lora_null"], "delta_90_low"] > 0).all(),
    "LoRA, rsLoRA, DoRA and OSF are within noise of it": lambda: _noise(90, "lora", "rslora", "dora", "osf"),
    "79.59 at 90 % of the gain, significantly more": lambda: survey(V)["delta_90_low"]["lwf"] > 0,
    "TALR is within noise": lambda: _noise(90, "talr"),
    "72.93, significantly less": lambda: survey(V)["delta_90_high"]["pissa"] < 0,
    "keeps 76.69, significantly less": lambda: survey(V)["delta_90_high"]["eaft"] < 0,
    "DFT and ASFT, which weigh a word by the probability": lambda: _unreached("dft", "asft"),
    "with gate and up alone it never": lambda: _unreached("gate_up"),
    "all significantly less than Full FT; the largest weights keep 77.7, within noise":
        lambda: (survey(V).loc[["half_ft_elements", "spider_magnitude", "gmt", "half_ft"], "delta_100_high"] < 0).all()
        and _noise(100, "largest_weights"),
    "G_gamma, SPIDER, GPS, SPU, Model-Dowser and all masks of a tenth do not reach":
        lambda: _unreached(
            "spider_gradient", "spider", "gps", "spu", "model_dowser", "random_tenth", "smallest_tenth",
            "largest_tenth"),
    "VeRA, IA3, LN tuning, prefix and prompt tuning, OFT, BOFT, Super-Tuning and LoRASculpt do not reach":
        lambda: _unreached(
            "vera", "ia3", "ln_tuning", "prefix", "prompt_tuning", "oft", "boft", "supertuning", "supertuning_bottom",
            "lorasculpt", "lorasculpt_code", "lorasculpt_connector"),
    "significantly more than Full FT does": lambda: survey(V)["delta_75_low"]["spider_code"] > 0,
    "LiNeS 84.29 and WiSE-FT 83.26, all significantly more": lambda: _ahead(
        100, "replay_source", "tailor", "wise_ft_tensors", "fisher", "ewc", "replay_generic", "lines", "wise_ft"),
    "80.57, all significantly more than Full FT; random":
        lambda: _ahead(100, "spider", "spider_gradient", "spider_code", "mofo") and all(
            survey(V, "coco")["delta_100_low"][row] <= 0 <= survey(V, "coco")["delta_100_high"][row]
            for row in ("half_ft_elements", "spider_magnitude")),
    "84.18 there, significantly more": lambda: _ahead(75, "spu"),
    "GPS, Model-Dowser and the smallest tenth of the weights never":
        lambda: not any(_learns(row, 75) for row in ("gps", "model_dowser", "smallest_tenth")),
    "No mask keeps more than WiSE-FT": lambda: max(
        kept(row, target="coco") for row in survey(V, "coco").query("group == 'Selective, while training'").index
        if _learns(row, 100)) < kept("wise_ft", target="coco"),
    "EAFT 82.65, all significantly more": lambda: _ahead(100, "lwf", "talr", "eaft"),
    "take 1.5 times as long, EAFT no longer": lambda: [
        round(survey(V, "coco")["time"][row], 1) for row in ("lwf", "talr", "eaft")] == [1.5, 1.5, 1.0],
    "66.53, significantly less, and ASFT never": lambda:
        survey(V, "coco")["delta_100_high"]["dft"] < 0 and not _learns("asft", 75),
    "80.31 at 100 %, both significantly more": lambda: _ahead(100, "l2_reg", "grafting"),
    "Half FT never learns 75 % of the gain. With":
        lambda: not _learns("half_ft", 75) and _learns("projector_frozen", 75) and not _learns("projector_frozen", 90),
    "is the only one of its kind so far that learns all": lambda: [
        row for row in survey(V, "coco").query("group == 'Low rank'").index if _learns(row, 100)] == ["pissa"],
    "there, significantly less than Full FT; its best point is the smallest of its five rates":
        lambda: survey(V, "coco")["delta_75_high"]["lora"] < 0 and survey(V, "coco")["best_at"]["lora"] == min(
            survey_points("coco", "lora")["strength"]),
    "**The best H of all is generic replay's**": lambda: survey(V, "coco")["H"].idxmax() == "replay_generic",
    "on Flickr30k they keep no more than Full FT at its full gain":
        lambda: all(kept(row) == kept("full_ft") for row in ("tailor", "wise_ft")),
    "On COCO neither learns all that Full FT learns, only":
        lambda: [_learns("projector_frozen", level) for level in (100, 90, 75)] == [False, False, True]
        and [_learns("shira", level) for level in (100, 90)] == [False, True],
    "on Flickr30k only one of the five learns that much": lambda: (
        survey_points("flickr30k", "ewc").dropna(subset=["strength"])["A_T"]
        >= plane(V, "Flickr30k", "full_ft", "A_T")
    ).sum() == 1,
    "on COCO it never learns 90 %": lambda: not _learns("lora", 90),
    "and never learns 75 % on Flickr30k": lambda: not _learns("spider", 75, "flickr30k"),
    "and never learns 75 % on COCO": lambda: not _learns("half_ft", 75),
    "On Flickr30k they end below the untuned model's A^T at each of their five": lambda: all(
        (survey_points("flickr30k", row)["A_T"] < plane(V, "Flickr30k", "zero_shot", "A_T")).all()
        for row in ("prompt_tuning", "prefix", "ia3", "ln_tuning")),
    "the gain of Full FT is only a fifth of the": lambda: 0.15 < (
        plane(V, "COCO-Caption", "full_ft", "A_T") / plane(V, "COCO-Caption", "zero_shot", "A_T") - 1) < 0.25,
    "has the best H of its five points there": lambda: survey_points("coco", "full_ft")["H"].to_numpy().argmax() == 1,
    "The other seven models of Full FT win nothing": lambda: all(
        asked_twice(*place)["back_low"] <= 0
        for place in product((V, L), ("flickr30k", "coco", "iconqa", "scienceqa")) if place != (L, "iconqa")
    ),
    "on COCO, both significant. But": lambda: all(
        asked_twice(V, target, "half_ft")["back_low"] > 0 for target in ("flickr30k", "coco")
    ),
    "the share of changed weights says nothing":
        lambda: correlation("changed", "within_low") < 0 < correlation("changed", "within_high"),
    "both significant": lambda: all(_starred("table5", "coco", "spider")),
    "It is the best method with VILA; with LLaVA, Tailor is":
        lambda: [_ranked("table5", model=m, target="coco")[0] for m in (V, L)] == ["spider", "tailor"],
    "within noise of Full FT's": lambda: not _starred("table5", "flickr30k", "spider")[1],
    "No method beats Full FT there by more than noise":
        lambda: not (_frames("table5", target="flickr30k").query("star").delta > 0).any(),
    "Half FT and Tailor also end below the untuned VILA":
        lambda: all(table("table5", V, "flickr30k", method, "A_T") < table("table5", V, "flickr30k", "zero_shot", "A_T")
                    for method in ("spider", "half_ft", "tailor")),
    "with them the most of A^S in all":
        lambda: all(_ranked("table5", "A_S", model=m, target=t)[0] == "tailor"
                    for m in (V, L) for t in ("flickr30k", "coco")),
    "It keeps less of A^S than Full FT in all":
        lambda: all(table("table5", m, t, "dare", "A_S") < table("table5", m, t, "full_ft", "A_S")
                    for m in (V, L) for t in ("flickr30k", "coco")),
    "is significantly below Full FT in H on Flickr30k, and within noise of it on COCO":
        lambda: all(_starred("table5", "flickr30k", "half_ft")) and not any(_starred("table5", "coco", "half_ft"))
        and (_frames("table5", target="flickr30k").loc["half_ft", "delta"] < 0).all(),
    "SPIDER is within noise of Full FT with both models": lambda: not any(_starred("table6", "iconqa", "spider")),
    "L2-Reg is significantly above both":
        lambda: _ranked("table6", model=L, target="iconqa")[0] == "l2_reg"
        and _starred("table6", "iconqa", "l2_reg")[1],
    "With VILA, no method moves H by more than noise":
        lambda: not _frames("table6", model=V, target="scienceqa").star.any(),
    "Tailor's H is the best":
        lambda: _ranked("table6", model=L, target="scienceqa")[0] == "tailor"
        and _starred("table6", "scienceqa", "tailor")[1] and not _starred("table6", "scienceqa", "spider")[1],
    "lies below the untuned model in both":
        lambda: all(plane(V, "Flickr30k", "spider", metric) < plane(V, "Flickr30k", "zero_shot", metric)
                    for metric in ("A_S", "A_T")),
    "lies a little above the line": lambda: _above_line(L, 0.5, 0.6),
    "On COCO, all four beat Full FT, and G > I is the best":
        lambda: [_ranked("table3", target="coco")[place] for place in (0, -1)] == [SELECTED[0], "full_ft"],
    "On Flickr30k, all four lose to Full FT":
        lambda: _ranked("table3", target="flickr30k")[0] == "full_ft"
        and set(_ranked("table3", target="flickr30k")[-2:]) == set(SELECTED[:2]),
    "With VILA, SPIDER stays behind Full FT at every setting":
        lambda: all(read(VILA, value, "spider") < read(VILA, value, "full_ft")
                    for read, values in ((epochs, range(5, 11)), (layers, range(2, 6)), (batch, (16, 32)))
                    for value in values),
    "SPIDER also stays behind Full FT at every number of epochs and layers":
        lambda: all(read(LLAVA, value, "spider") < read(LLAVA, value, "full_ft")
                    for read, values in ((epochs, range(5, 11)), (layers, range(2, 6))) for value in values),
    "most of Full FT's forgetting is there after the first":
        lambda: all(2 * (base - first) > base - last for base, first, last in (
            [forgetting(m, epoch, "full_ft", "A_S", t) for epoch in (0, 1, 5)]
            for m in (VILA, LLAVA) for t in ("Flickr30k", "COCO-Caption"))),
}


# ---------------------------------------------------------------------------------------------------------------
# The check


def shown(value: Any, form: str) -> str:
    """Return a value as text: rounded half up as a reader rounds, or in the way of 5e-4."""
    if form:
        return str(Decimal(str(round(value, 6))).quantize(Decimal(1).scaleb(-int(form[1:-1])), ROUND_HALF_UP))
    if isinstance(value, float) and 0 < value < 0.01:
        digits, power = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return str(value)


def render(template: str, values: Sequence[Any]) -> tuple[str, list[tuple[int, int]]]:
    """Return a row's text and where its numbers stand in it."""
    text, spans, rest = "", [], list(values)
    for literal, name, form, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            number = shown(rest.pop(0), form)
            spans.append((len(text), len(text) + len(number)))
            text += number
    assert not rest, f"{template}: more values than fields"
    return text, spans


def numbers(text: str) -> list[re.Match[str]]:
    """Return the numbers of a text; not those in the target of a link."""
    targets = [match.span() for match in TARGET.finditer(text)]
    return [match for match in NUMBER.finditer(text) if not any(a <= match.start() < b for a, b in targets)]


def faults(text: str, rows: Sequence[Row]) -> list[str]:
    """Return the rows that the text does not show, and its numbers that no row has.

    Args:
        text: a section.
        rows: its rows.
    """
    text = " ".join(text.split())
    found, covered = [], []
    for template, *values in rows:
        fragment, spans = render(template, values)
        if text.count(fragment) != 1:
            found.append(f"{text.count(fragment)} times instead of once: {fragment}")
            continue
        start = text.index(fragment)
        covered += [(start + a, start + b) for a, b in spans]
    for match in numbers(text):
        if not any(a <= match.start() and match.end() <= b for a, b in covered):
            found.append(f"no source for {match[0]} in: ...{text[max(0, match.start() - 40) : match.end() + 20]}...")
    return found


def sections(path: Path) -> dict[str, str]:
    """Return heading -> text with the heading, of a Markdown file."""
    parts = re.split(r"^(?=#+ )", path.read_text(), flags=re.M)
    return {part.lstrip("# ").partition("\n")[0]: part for part in parts if part.strip()}


def section(path: Path, start: str) -> str:
    """Return the one section whose heading starts so."""
    (text,) = (text for heading, text in sections(path).items() if heading.startswith(start))
    return text


NAMES = [pytest.param(name, marks=[pytest.mark.slow] if rows is claims else []) for name, rows in FINDINGS.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_its_source(name):
    assert faults(section(FINDINGS_MD, name), FINDINGS[name]()) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_altered_digit_is_seen(name):
    text, rows = section(FINDINGS_MD, name), FINDINGS[name]()
    _alter(" ".join(text.split()), rows)


def _alter(text: str, rows: Sequence[Row]) -> None:
    """Alter each digit in turn and expect a fault."""
    assert not rows or numbers(text)
    for match in numbers(text):
        for at in (place for place in range(*match.span()) if text[place].isdigit()):
            altered = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
            assert faults(altered, rows), f"{match[0]} at {at}"


def test_readme_findings_have_their_source():
    text, rows = section(ROOT / "README.md", "What we found"), readme()
    assert faults(text, rows) == []
    assert len(re.findall(r"^- ", text, re.M)) <= 5
    _alter(" ".join(text.split()), rows)


def test_a_new_number_is_seen():
    assert faults("H is 1.5, not 2.", [("H is {:.1f}", 1.5)]) == ["no source for 2 in: ...H is 1.5, not 2...."]


def test_every_section_is_checked():
    assert all(sum(heading.startswith(name) for name in FINDINGS) == 1 for heading in sections(FINDINGS_MD))


@pytest.mark.parametrize("words", FACTS)
def test_words_are_true(words):
    assert words in " ".join(FINDINGS_MD.read_text().split())
    assert FACTS[words]()
