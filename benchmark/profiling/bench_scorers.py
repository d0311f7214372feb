"""Time the scorers on sets of realistic size: 5,000 images with captions, 25,000 answers of other types."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import user_path, write_atomic
from benchmark.data.record import Record
from benchmark.profiling.settings import names_of, read_settings
from eval.caption import tokenise
from eval.score import METRICS, score

CAPTIONS, ANSWERS = 5_000, 25_000
LIMITS = {"cider": 6.0, "vqa_lavis": 3.0, "vqa_official": 3.0, "textvqa": 3.0}  # limit in seconds of one core
WORDS = [
    "a", "an", "the", "one", "two", "three", "man", "woman", "dog", "cat", "red", "blue", "green", "street", "table",
    "on", "in", "with", "near", "of", "and", "is", "are", "doesn't", "it's", "sitting", "standing", "riding", "holding",
    "yes", "no", "10", "2:30", "coca-cola", "stop", "left", "right", "o'clock", "large", "small",
]


def texts(rng: random.Random, least: int, most: int) -> str:
    """Return text that exercises the normalisers: articles, digits, contractions, hyphens."""
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most))) + rng.choice(("", ".", "!", " ,"))


def items(metric: str, seed: int = 0) -> tuple[list[Record], dict[str, str]]:
    """Return records and answers for one metric, as many as the largest real set has.

    Args:
        metric: a key of METRICS.
        seed: seed of the texts.

    Returns:
        Records, with five references for captions, ten for VQA, one otherwise; and an answer for each.
    """
    rng = random.Random(f"{metric}/{seed}")
    records, answers = [], {}
    for number in range(CAPTIONS if metric == "cider" else ANSWERS):
        if metric == "cider":
            references = tuple(texts(rng, 8, 14) for _ in range(5))
            answer = texts(rng, 8, 14)
        elif metric == "scienceqa":
            references, answer = (rng.choice("ABCD"),), rng.choice(("A", "B.", "The answer is C", "d", "yes"))
        else:
            pool = [texts(rng, 1, 3) for _ in range(4)]
            references = tuple(rng.choices(pool, k=1 if metric in ("gqa", "exact_lower") else 10))
            answer = rng.choice((*pool, texts(rng, 1, 3)))
        options = ("a", "b", "c", "d") if metric == "scienceqa" else None
        records.append(Record(str(number), "bench", "test", None, "?", None, references, options, str(number), {}))
        answers[str(number)] = answer
    return records, answers


def measure(metric: str) -> tuple[int, float, float]:
    """Score one set; return its size, the wall time and the processor time including Java, in seconds."""
    records, answers = items(metric)
    wall, before = time.monotonic(), _processor_seconds()
    score(metric, records, answers)
    return len(records), time.monotonic() - wall, _processor_seconds() - before


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def table(rows: Sequence[tuple[str, int, float, float]]) -> str:
    """Return the measurements as a Markdown table."""
    lines = ["| scorer | answers | seconds | processor seconds | target |", "| --- | --: | --: | --: | --: |"]
    for metric, count, wall, used in rows:
        target = f"< {LIMITS[metric]:g}" if metric in LIMITS else "-"
        lines.append(f"| {METRICS[metric]} | {count:,} | {wall:.2f} | {used:.2f} | {target} |")
    return "\n".join(lines)


def main(overrides: Sequence[str], measured: Callable[[str], tuple[int, float, float]] = measure) -> int:
    """Time the scorers and print a table.

    Args:
        overrides: metrics= (a comma list, default all), out= (a file for the table).
        measured: function that times one metric.

    Returns:
        Exit code.

    Raises:
        UserError: an unknown key or metric, or no Java.
    """
    given = read_settings("bench scorers", {"metrics": ",".join(METRICS), "out": ""}, overrides)
    metrics = names_of(given["metrics"])
    if faults := [f"metrics={name}: unknown metric.{did_you_mean(name, METRICS)}" for name in metrics
                  if name not in METRICS]:
        raise UserError(" ".join(faults))
    if "cider" in metrics:
        tokenise(["warm up"])  # warm-up: the first start of Java reads its files from disk
    shown = table([(name, *measured(name)) for name in metrics])
    try:
        if given["out"]:
            write_atomic(user_path(given["out"]), shown + "\n")
    finally:
        print(shown)
    return 0
