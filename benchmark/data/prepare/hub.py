"""Source (b): parquet tables of the Hugging Face hub, or the same tables in one of the user's folders.

`datasets` reads the tables and keeps one cache (HF_HOME). Downloaded code is never executed: the library refuses
repositories with a loading script, and the message says what to use instead. Image bytes are not decoded, and only
those of the rows in use are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.data import check
from benchmark.data.prepare.files import Place
from benchmark.data.prepare.forms import Row

Rows = dict[str, list[Row]]
REACH_SECONDS = 5.0  # for the hub's first answer; a look-up by the client takes 20 seconds or more to fail

# Tables that look right but are not.
REFUSED = {
    "lmms-lab/flickr30k": "its 'test' is the whole corpus, 31,783 images with the training ones among them",
    "lmms-lab-encoder/flickr30k": "its 'test' is the whole corpus, 31,783 images with the training ones among them",
    "nlphuji/flickr30k": "it is a loading script, which datasets 4 and later do not run",
    "facebook/textvqa": "it is a loading script, which datasets 4 and later do not run",
    "HuggingFaceM4/OK-VQA": "it is a loading script, which datasets 4 and later do not run",
}


class Unavailable(Exception):
    """A table is not available under any of its ids; the message gives the reason for each id."""


@dataclass(frozen=True)
class Packed:
    """The image in a row of a table."""

    table: Any
    index: int
    column: str

    def read(self) -> bytes:
        """Return the undecoded bytes."""
        cell = self.table[self.index][self.column]
        content = cell.get("bytes") if isinstance(cell, Mapping) else None
        if not content and isinstance(cell, Mapping) and cell.get("path"):
            content = Path(cell["path"]).read_bytes()
        if not content:
            raise OSError(f"row {self.index} has no image bytes")
        return content


@dataclass(frozen=True)
class Table:
    """A table without its images, and the location of the images."""

    name: str
    rows: Any
    whole: Any
    image_column: str | None

    def packed(self, index: int) -> Packed | None:
        """Return the image of a row; None if the table has no images."""
        return None if self.image_column is None else Packed(self.whole, index, self.image_column)

    def empty(self) -> list[bool]:
        """Return for every row whether its image cell is empty; no image is read."""
        if self.image_column is None:
            return [False] * len(self.whole)
        return self.whole.data.column(self.image_column).is_null().to_pylist()


def reachable() -> bool:
    """Return whether the hub answers. Called once before the look-ups, because each of them is slow to fail.

    The request uses the client's session and so respects its proxies, its endpoint and HF_HUB_OFFLINE.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    except Exception:  # the HTTP library and its errors depend on the client's version
        return False
    return True


def load(
    dataset: str, names: Mapping[str, str], source: Mapping[str, Any], places: Sequence[Place], online: bool = True,
    spare: Path | None = None,
) -> Rows:
    """Read the tables of a dataset.

    Args:
        dataset: one of the eight.
        names: our split -> official name.
        source: the dataset's `hub` entry in conf/sources.yaml.
        places: folders that may hold the tables, see `local`.
        online: whether to download a table that no folder holds; the hub client's cache is read in either case.
        spare: cache of `datasets` if its default (HF_HOME) is not writable.

    Returns:
        Rows per official split.

    Raises:
        Unavailable: a split has no table, or none of its ids is available.
        UserError: a table is refused, or lacks a column; the message names table and row.
    """
    splits: Rows = {}
    tables: dict[str, Table] = {}
    entries = [table for part in source.values() for table in (part, part.get("images")) if table]
    alone = len({ident.rpartition("/")[2] for entry in entries for ident in entry["ids"]}) == 1
    for split, name in names.items():
        entry = source.get(split)
        if entry is None:
            raise Unavailable(f"the hub has no {split} split of {dataset}")
        table = _table(entry, places, alone, online, spare)
        rows = _rows(dataset, table, name)
        if entry.get("images"):
            key = str(entry["images"])
            tables[key] = tables.get(key) or _table(entry["images"], places, alone, online, spare)
            rows = _join(rows, tables[key], entry["images"]["key"], dataset)
        check.distinct((row.id for row in rows), Path(table.name), "item")
        splits[name] = rows
    return splits


def local(ident: str, places: Sequence[Place], alone: bool = False) -> Path | None:
    """Return the folder that holds a table.

    Args:
        ident: id of the table, <org>/<name>.
        places: folders to look in: for <org>/<name>, for <name>, and for the newest snapshot in the layout of the hub
            client's cache; a folder called <name> may be the table itself.
        alone: whether all tables of the dataset have this name, so that a folder of the dataset may be the table.

    Returns:
        A folder with parquet files, or None.
    """
    last = ident.rpartition("/")[2]
    for place in places:
        snapshots = (place.path / f"datasets--{ident.replace('/', '--')}" / "snapshots").glob("*")
        itself = place.path.name == last or (place.own and alone)
        for folder in (
            place.path / ident, place.path / last, *sorted(snapshots, key=lambda path: -path.stat().st_mtime),
            *([place.path] if itself else []),
        ):
            if folder.is_dir() and any(folder.rglob("*.parquet")):
                return folder
    return None


def _cached(ident: str) -> Path | None:
    """Return the snapshot of a table in the hub client's cache, which `datasets` does not read when offline."""
    from huggingface_hub import constants

    return local(ident, [Place(Path(constants.HF_HUB_CACHE))])


def _table(
    entry: Mapping[str, Any], places: Sequence[Place], alone: bool, online: bool, spare: Path | None
) -> Table:
    """Open the first available id of a table: from the user's folders, the network or the client's cache."""
    reasons = []
    for ident in entry["ids"]:
        if ident in REFUSED:
            raise UserError(f"{ident} is refused: {REFUSED[ident]}. Take another id in conf/sources.yaml.")
        folder = local(ident, places, alone)
        paths: list[Path | str] = [folder] if folder else [ident] if online else []
        if folder is None and (snapshot := _cached(ident)):
            paths.append(snapshot)
        for path in paths:
            try:
                return _open(str(path), ident, entry.get("config"), entry["split"], spare)
            except UserError:
                raise
            except Exception as error:  # errors of datasets, the hub client and the network have no common base
                reasons.append(f"{path}: {_reason(error)}")
        if not paths:
            reasons.append(f"{ident}: neither below --from nor in the hub client's cache")
    raise Unavailable("; ".join(reasons))


def _cache(spare: Path | None) -> str | None:
    """Return the cache for `datasets`: None for its default, or `spare` where the default is not writable."""
    from datasets import config

    own = Path(config.HF_DATASETS_CACHE)
    try:
        own.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=own).close()
        return None
    except OSError:
        return None if spare is None else str(spare)


def _open(path: str, ident: str, config: str | None, split: str, spare: Path | None) -> Table:
    import datasets

    options = {} if config in (None, "default") else {"name": config}
    whole = datasets.load_dataset(path, split=split, cache_dir=_cache(spare), **options)
    images = [name for name, feature in whole.features.items() if isinstance(feature, datasets.Image)]
    # A table without the hub's metadata stores its images as {bytes, path}.
    images += [
        name for name, feature in whole.features.items()
        if isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    ]
    for name in images:
        if isinstance(whole.features[name], datasets.Image):
            whole = whole.cast_column(name, datasets.Image(decode=False))
    column = next((name for name in ("image", "query_image", *images) if name in images), None)
    return Table(f"{ident} ({split})", whole.remove_columns(images) if images else whole, whole, column)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "scripts are no longer supported" in text:
        return "it is a loading script, which is never run"
    return text[:200]


def _rows(dataset: str, table: Table, name: str) -> list[Row]:
    reader, rows = _READERS[dataset], []
    path, empty = Path(table.name), table.empty()
    for index, entry in enumerate(table.rows):
        row = reader(entry, path, f"row {index}", index, name)
        if row is None:
            continue
        if not empty[index]:
            row = Row(row.id, row.image, row.fields, table.packed(index))
        elif dataset == "scienceqa":  # a text-only problem; other datasets report the missing image
            row = Row(row.id, None, row.fields)
        rows.append(row)
    return rows


def _join(rows: list[Row], images: Table, key: str, dataset: str) -> list[Row]:
    """Attach the images of a second table to rows, by the image's id."""
    path = Path(images.name)
    if images.image_column is None:
        raise UserError(f"{path} has no column with images. Take another id in conf/sources.yaml.")
    places: dict[str, int] = {}
    for index, entry in enumerate(images.rows):
        places.setdefault(check.identifier(entry, key, path, f"row {index}"), index)
    joined = []
    for row in rows:
        place = places.get(row.id if dataset == "coco" else str(row.image))
        joined.append(Row(row.id, row.image, row.fields, None if place is None else images.packed(place)))
    return joined


# ---------------------------------------------------------------------------------------------------------------
# Columns of each table


def _okvqa(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    key = str(check.number(entry, "question_id", path, where))
    # The id of a VQA question is its image's id and one more digit.
    return Row(key, str(int(key) // 10), {
        "question": check.text(entry, "question", path, where), "answers": check.texts(entry, "answers", path, where),
        "question_type": check.text(entry, "question_type", path, where, default=""),
    })


def _textvqa(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    return Row(check.identifier(entry, "question_id", path, where), check.identifier(entry, "image_id", path, where), {
        "question": check.text(entry, "question", path, where), "answers": check.texts(entry, "answers", path, where),
        "ocr_tokens": check.texts(entry, "ocr_tokens", path, where, least=0),
    })


def _ocrvqa(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    book = check.identifier(entry, "image_id", path, where)
    questions, answers = (check.texts(entry, key, path, where, least=0) for key in ("questions", "answers"))
    if len(questions) != len(answers):
        raise UserError(f"{path}: {where} has {len(questions)} questions, {len(answers)} answers.")
    more = {key: check.text(entry, key, path, where, default="") for key in ("title", "authorName", "genre")}
    return Row(book, book, {"questions": questions, "answers": answers, **more})


def _gqa(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    types = check.mapping(entry.get("types") or {}, path, f"types of {where}")
    return Row(check.identifier(entry, "id", path, where), check.identifier(entry, "imageId", path, where), {
        "question": check.text(entry, "question", path, where), "answer": check.text(entry, "answer", path, where),
        "types": {
            kind: check.text(types, kind, path, where, default="") for kind in ("structural", "semantic", "detailed")
        },
    })


def _flickr30k(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    column = next((key for key in ("original_alt_text", "caption", "alt_text") if key in entry), "caption")
    file = check.identifier(entry, "filename", path, where)
    fields = {"captions": check.texts(entry, column, path, where), "filename": file}
    return Row(check.identifier(entry, "img_id", path, where), file, fields)


def _coco(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    column = "sentences" if "sentences" in entry else "en_sentences_raw"
    file = check.identifier(entry, "filename", path, where)
    return Row(check.identifier(entry, "cocoid", path, where), file, {
        "captions": check.texts(entry, column, path, where), "filename": file,
        "filepath": check.identifier(entry, "filepath", path, where),
    })


def _iconqa(entry: Any, path: Path, where: str, index: int, name: str) -> Row | None:
    if check.text(entry, "ques_type", path, where) != "choose_txt":
        return None
    key = check.identifier(entry, "question_id", path, where)
    choices = [choice.strip() for choice in check.text(entry, "choices", path, where).split(",")]
    answer = check.text(entry, "answer", path, where)
    if choices.count(answer) != 1:
        raise UserError(
            f"{path}: {where} (problem {key}) has the answer {answer!r} and the choices {entry['choices']!r}: the "
            "table joins them by commas, which cannot be undone here. Use the official iconqa_data.zip."
        )
    skills = entry.get("skills")
    return Row(key, key, {
        "question": check.text(entry, "question", path, where), "choices": choices, "answer": choices.index(answer),
        "ques_type": "choose_txt", "skills": list(skills) if isinstance(skills, list) else [],
    })


def _scienceqa(entry: Any, path: Path, where: str, index: int, name: str) -> Row:
    from benchmark.data.prepare.official import problem

    more = {key: check.text(entry, key, path, where, default="") for key in ("hint", "subject", "topic")}
    key = f"{name}{index:05d}"  # the table has no problem ids
    return Row(key, key, {**problem(entry, path, where), **more})


_READERS: dict[str, Callable[[Any, Path, str, int, str], Row | None]] = {
    "okvqa": _okvqa, "textvqa": _textvqa, "ocrvqa": _ocrvqa, "gqa": _gqa, "flickr30k": _flickr30k, "coco": _coco,
    "iconqa": _iconqa, "scienceqa": _scienceqa,
}
