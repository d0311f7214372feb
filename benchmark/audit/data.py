"""Checks of the data: counts, images, scenes shared between splits, and scores without the image.

`python -m benchmark audit data` calls `main`, which exits with 1 if the data are not sound.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageStat
from rich.console import Console

from benchmark.audit import baselines
from benchmark.audit.data_report import Report, markdown, tables, verdict
from benchmark.core.errors import UserError
from benchmark.core.files import sha256_file, write_atomic
from benchmark.core.progress import StageTold, long_work
from benchmark.data import SPLITS, load, reader_of
from benchmark.data.layout import Absent, read_json
from benchmark.data.record import Record, check_images, find_image, open_image
from benchmark.spec import DatasetSpec
from eval.score import score, value

if TYPE_CHECKING:
    from benchmark.models import LoadedModel

Answerer = Callable[[DatasetSpec, list[Record]], Mapping[str, str]]
Splits = dict[tuple[str, str], list[Record]]

SCENE_KEYS = "scene_keys.json"


def audit(
    specs: Sequence[DatasetSpec], root: Path, bases: Mapping[str, Answerer] | None = None,
    split: str = "test", told: StageTold | None = None,
) -> Report:
    """Check all splits that are on disk and compute the baselines of one.

    A split is required if the spec gives its count; other splits are read if they exist. Baselines learn from the
    training split if it is on disk.

    Args:
        specs: datasets of a profile; protocol variants that share a reader share its images.
        root: data folder.
        bases: by name, functions that answer records with a model. Each answers twice: once with the images, once
            with their mean colour instead ('blind').
        split: the split that the baselines answer.
        told: called with (stage, done, total) while images are decoded and baselines computed.

    Returns:
        The report.

    Raises:
        UserError: no split could be read.
    """
    report = Report()
    splits = read_splits(specs, root, report, told)
    if not splits:
        raise UserError("\n".join(report.faults) or f"{root} has no dataset. Draw or fetch one there.")
    # Protocol variants share images, so only one spec per reader counts as a dataset.
    first = {reader_of(spec): spec.id for spec in reversed(specs)}
    own = {(reader_of(spec), name): splits[spec.id, name]
           for spec in specs if first[reader_of(spec)] == spec.id
           for name in SPLITS if (spec.id, name) in splits}
    check_disjoint(own, root, report)
    shown = [spec for spec in specs if (spec.id, split) in splits]
    for done, spec in enumerate(shown):
        if told is not None:
            told("baselines", done, len(shown))
        train, test = splits.get((spec.id, "train"), []), splits[spec.id, split]
        if spec.metric == "cider":
            report.captions.append(caption_row(spec, train, test, bases or {}))
        else:
            report.questions.extend(question_rows(spec, train, test, bases or {}))
    return report


def read_splits(
    specs: Iterable[DatasetSpec], root: Path, report: Report, told: StageTold | None = None
) -> Splits:
    """Read every split that is required or on disk, and collect the faults.

    Args:
        specs: datasets.
        root: data folder.
        report: receives the faults.
        told: called with ("images", decoded, all).

    Returns:
        Records by (dataset id, split).
    """
    splits: Splits = {}
    for spec in specs:
        for split in SPLITS:
            required = (spec.counts or {}).get(split) is not None
            try:
                splits[spec.id, split] = load(spec, root, split)
            except Absent as error:
                if required:
                    report.faults.append(str(error))
            except UserError as error:
                report.faults.append(str(error))
    sizes = {place: len({record.image for record in records} - {None}) for place, records in splits.items()}
    before, sound = 0, {}
    for place, records in splits.items():
        def count(done: int, _: int, before: int = before) -> None:
            if told is not None:
                told("images", before + done, sum(sizes.values()))

        try:
            check_images(records, count)
            sound[place] = records
        except UserError as error:
            report.faults.append(str(error))
        before += sizes[place]
    return sound


def check_disjoint(splits: Splits, root: Path, report: Report) -> None:
    """Find scenes that occur in more than one split or dataset.

    Args:
        splits: records by (reader, split).
        root: data folder; <reader>/scene_keys.json = {split: {group: key}} names the scenes of drawn images. Without
            that file, images with equal bytes are the same scene.
        report: receives a row per split, the duplicates, and a fault for groups without a key.
    """
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for (reader, split), records in splits.items():
        images = {record.group: record.image for record in records if record.image is not None}
        path = root / reader / SCENE_KEYS
        named = read_json(path).get(split, {}) if path.is_file() else None
        if named is None:
            keys = {group: sha256_file(find_image(image) or image) for group, image in images.items()}
        else:
            keys = {group: str(named[group]) for group in images if group in named}
            without = sorted(set(images) - set(keys))
            if without:
                report.faults.append(
                    f"{path}: {len(without)} of {len(images)} groups of {split} have no scene key (first: "
                    f"{without[0]}). Draw the dataset again."
                )
        for group, key in keys.items():
            places[key].setdefault(f"{reader}/{split}", group)
        report.splits.append({
            "dataset": reader, "split": split, "items": len(records),
            "groups": len({record.group for record in records}), "images": len(images),
            "scenes": len(set(keys.values())), "keys": "image bytes" if named is None else "scene keys",
        })
    report.duplicates = [
        {"key": key, "places": [f"{place} group {group}" for place, group in sorted(found.items())]}
        for key, found in sorted(places.items()) if len(found) > 1
    ]


def question_rows(
    spec: DatasetSpec, train: Sequence[Record], test: Sequence[Record], bases: Mapping[str, Answerer]
) -> list[dict[str, Any]]:
    """Score the baselines of a question set on all items and, if some have no image, also on the items with one.

    Args:
        spec: id and metric.
        train: training records; may be empty.
        test: records to answer.
        bases: models, which answer with and without the images.

    Returns:
        Rows {dataset, items, n, learned_from, majority, lookup, ceiling, bases: {name: {blind, sighted}}},
        0-100; lookup is None without training answers.
    """
    images = [record for record in test if record.image is not None]
    answers = {"majority": baselines.majority(train, test)}
    if train:
        answers["lookup"] = baselines.lookup(train, test)
    tries = baselines.each_reference(test)
    seen = {name: _with_and_without(spec, test, base) for name, base in bases.items()}
    rows = []
    for label, part in (("all", test), ("image", images)):
        if not part or (label == "image" and len(images) == len(test)):
            continue

        def points(given: Mapping[str, str], part: Sequence[Record] = part) -> float:
            return value(score(spec.metric, part, given))

        best = [max(item) for item in zip(
            *([scored.score for scored in score(spec.metric, part, given)] for given in tries), strict=True
        )]
        rows.append({
            "dataset": spec.id, "items": label, "n": len(part), "learned_from": "train" if train else "test",
            "majority": points(answers["majority"]),
            "lookup": points(answers["lookup"]) if train else None,
            "ceiling": 100 * sum(best) / len(best),
            "bases": {
                name: {way: points(given) for way, given in ways.items()} for name, ways in seen.items()
            },
        })
    return rows


def caption_row(
    spec: DatasetSpec, train: Sequence[Record], test: Sequence[Record], bases: Mapping[str, Answerer]
) -> dict[str, Any]:
    """Score the baselines of a captioning set.

    Args:
        spec: id and metric (cider).
        train: training records; may be empty.
        test: one record per image.
        bases: models, which answer with and without the images.

    Returns:
        {dataset, n, learned_from, one_reference, commonest, shuffled, bases}: CIDEr x 100 of each caption
        against the image's others (mean over the captions held out; None if an image has only one), of the most
        frequent caption for every image, and of correct captions on shuffled images.
    """
    def points(records: Sequence[Record], given: Mapping[str, str]) -> float:
        return value(score(spec.metric, records, given))

    fewest = min(len(record.references) for record in test)
    held = [points(*baselines.held_out(test, position)) for position in range(fewest)] if fewest > 1 else []
    return {
        "dataset": spec.id, "n": len(test), "learned_from": "train" if train else "test",
        "one_reference": sum(held) / len(held) if held else None,
        "commonest": points(test, baselines.commonest_caption(train, test)),
        "shuffled": points(test, baselines.shuffled_captions(test)),
        "bases": {
            name: {way: points(test, given) for way, given in _with_and_without(spec, test, base).items()}
            for name, base in bases.items()
        },
    }


def _with_and_without(
    spec: DatasetSpec, records: Sequence[Record], base: Answerer
) -> dict[str, Mapping[str, str]]:
    """Return a model's answers with the mean colour in place of the images, and with the images."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "blind": base(spec, mean_colour(records, Path(folder))),
            "sighted": base(spec, list(records)),
        }


def mean_colour(records: Sequence[Record], folder: Path) -> list[Record]:
    """Replace every image by one in the mean colour of all images. Items without an image stay as they are.

    Args:
        records: any records.
        folder: where the new image is written.

    Returns:
        The same items with the uniform image, which has the size of the first one.
    """
    shown = {record.image: record for record in records if record.image is not None}
    if not shown:
        return list(records)
    size = open_image(next(iter(shown.values()))).size
    means = [ImageStat.Stat(open_image(record)).mean for record in shown.values()]
    colour = tuple(round(sum(channel) / len(means)) for channel in zip(*means, strict=True))
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    path = Path(folder) / "mean_colour.png"
    write_atomic(path, buffer.getvalue())
    return [
        record if record.image is None else dataclasses.replace(record, image=path) for record in records
    ]


def answerer(loaded: LoadedModel, batch_size: int = 64) -> Answerer:
    """Return a function that answers records with a loaded model, by greedy decoding as in an evaluation.

    Args:
        loaded: from benchmark.models.load.
        batch_size: items per batch.
    """
    from benchmark.training.generate import generate  # torch is needed only if a model answers

    def answer(spec: DatasetSpec, records: list[Record]) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answers.jsonl"
            generate(loaded, records, spec, path, batch_size, None)
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line["item_id"]: line["text"] for line in lines}

    return answer


def main(
    specs: Sequence[DatasetSpec], root: Path, bases: Mapping[str, Answerer] | None = None,
    out: Path | None = None, split: str = "test", console: Console | None = None,
) -> int:
    """Audit the data, print the report and, if `out` is given, write audit.json and audit.md.

    Args:
        specs: datasets of a profile.
        root: data folder.
        bases: see `audit` and `answerer`.
        out: folder for the two files; None writes nothing.
        split: the split that the baselines answer.
        console: where to print.

    Returns:
        Exit code: 0, or 1 if the data are not sound.

    Raises:
        UserError: no split could be read, or the folder is not writable.
    """
    console = console or Console()
    with long_work("audit") as told:
        report = audit(specs, Path(root), bases, split, told)
    if out is not None:
        content = dataclasses.asdict(report) | {"passed": report.passed, "split": split}
        write_atomic(Path(out) / "audit.json", json.dumps(content, indent=1) + "\n")
        write_atomic(Path(out) / "audit.md", markdown(report))
    for table in tables(report):
        console.print(table)
    console.print(verdict(report), markup=False, highlight=False)
    return 0 if report.passed else 1
