"""The drawn suite, small, in every form in which the real datasets come: official files, hub tables, the group's JSON.

The odd cases are planted: a book whose cover is a .gif, a COCO image of restval, an IconQA problem with five options.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmark.data.prepare import official
from benchmark.data.prepare.files import Index, Place
from benchmark.data.prepare.forms import Row
from benchmark.pocket.world.splits import TARGETS, UPSTREAM
from benchmark.pocket.world.suite import Suite

COUNTS = {"train": 24, "validation": 4, "test": 12}
SAMPLE = 16
RESTVAL = 3   # images of COCO's training split that Karpathy's file calls restval
OFFICIAL = {
    "okvqa": ["val2014"], "textvqa": ["val"], "ocrvqa": ["3"], "gqa": ["testdev"], "flickr30k": ["train", "test"],
    "coco": ["train", "test"], "iconqa": ["train", "test"], "scienceqa": ["train", "test"],
}
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def overrides() -> list[str]:
    """Return settings that make the paper's profile expect so many items."""
    given = ["profile=paper"]
    for name in ("okvqa", "textvqa", "textvqa_no_ocr", "gqa"):
        given.append(f"dataset.{name}.counts.test={COUNTS['test']}")
    given += ["dataset.ocrvqa.counts.test=10", "dataset.ocrvqa.options.sample.test=10"]
    given += [f"dataset.{name}.counts.test_images=null" for name in ("textvqa", "gqa", "scienceqa")]
    for name in ("flickr30k", "coco", "iconqa", "scienceqa"):
        given += [f"dataset.{name}.counts.{key}={value}" for key, value in (COUNTS | {"train": SAMPLE}).items()]
        given.append(f"dataset.{name}.options.sample.train={SAMPLE}")
        given.append(f"dataset.{name}.counts.train_rows={COUNTS['train'] - RESTVAL * (name == 'coco')}")
    return given


def draw_official(root: Path, patch: Any) -> Path:
    """Draw the small suite in the official layout and plant the odd cases.

    Args:
        root: destination.
        patch: a pytest.MonkeyPatch.

    Returns:
        The folder.
    """
    Suite(dict.fromkeys(UPSTREAM + TARGETS, COUNTS)).draw(root)
    path = root / "coco" / "dataset_coco.json"
    karpathy = json.loads(path.read_text())
    for entry in [entry for entry in karpathy["images"] if entry["split"] == "train"][-RESTVAL:]:
        entry["split"] = "restval"
    path.write_text(json.dumps(karpathy))
    path = root / "iconqa" / "iconqa_data" / "problems.json"
    problems = json.loads(path.read_text())
    problem = problems[next(key for key in problems if key.startswith("3"))]
    problem["choices"] = (problem["choices"] + ["v", "w", "x", "y", "z"])[:5]
    path.write_text(json.dumps(problems))
    cover = next(path for path in sorted((root / "ocrvqa" / "images").iterdir()) if path.stem.startswith("3"))
    with Image.open(cover) as image:
        image.save(cover.with_suffix(".gif"))
    cover.unlink()
    return root


def rows_of(source: Path) -> dict[str, dict[str, list[Row]]]:
    """Return dataset -> official split -> rows of the drawn suite."""
    return {
        name: official.load(name, splits, Index([Place(source / name, own=True)])) for name, splits in OFFICIAL.items()
    }


def image_of(source: Path, name: str, split: str, row: Row) -> Path | None:
    """Return the drawn image of a row."""
    folder = source / name
    paths = {
        "okvqa": f"val2014/COCO_val2014_{int(row.image) if name == 'okvqa' else 0:012d}.jpg",
        "textvqa": f"train_images/{row.image}.jpg", "ocrvqa": f"images/{row.id}.jpg", "gqa": f"images/{row.image}.jpg",
        "flickr30k": f"flickr30k-images/{row.fields.get('filename')}",
        "coco": f"{row.fields.get('filepath')}/{row.fields.get('filename')}",
        "iconqa": f"iconqa_data/iconqa/{split}/choose_txt/{row.id}/image.png",
        "scienceqa": f"images/{split}/{row.id}/image.png",
    }
    path = folder / paths[name]
    if row.image is None:
        return None
    return path if path.is_file() else path.with_suffix(".gif")


# ---------------------------------------------------------------------------------------------------------------
# Hub tables

_HUB_SPLIT = {"val2014": "val2014", "val": "validation", "3": "test", "testdev": "testdev"}


def write_hub(source: Path, out: Path) -> Path:
    """Write each dataset as parquet with the columns of its table on the hub, below <out>/<org>/<name>.

    Returns:
        The folder.
    """
    rows = rows_of(source)
    for name, splits in rows.items():
        for split, part in splits.items():
            _HUB[name](source, out, split, part)
    return out


def _table(out: Path, ident: str, config: str | None, split: str, columns: dict[str, list[Any]]) -> None:
    folder = out / ident / (config or "data")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet", row_group_size=5)
    readme = out / ident / "README.md"
    if config:
        known = sorted(path.name for path in (out / ident).iterdir() if path.is_dir())
        lines = []
        for item in known:
            lines += [f"- config_name: {item}", "  data_files:"]
            for path in sorted((out / ident / item).glob("*.parquet")):
                lines += [f"  - split: {path.name.split('-')[0]}", f"    path: {item}/{path.name}"]
        readme.write_text("\n".join(["---", "configs:", *lines, "---", ""]))


def _packed(source: Path, name: str, split: str, rows: list[Row]) -> list[dict[str, Any] | None]:
    paths = [image_of(source, name, split, row) for row in rows]
    return [None if path is None else {"bytes": path.read_bytes(), "path": path.name} for path in paths]


def _columns(rows: list[Row], *names: str) -> dict[str, list[Any]]:
    return {name: [row.fields.get(name) for row in rows] for name in names}


def _hub_okvqa(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "lmms-lab/OK-VQA", None, "val2014", {
        "question_id": [row.id for row in rows], "image": _packed(source, "okvqa", split, rows),
        **_columns(rows, "question", "answers", "question_type"), "answer_type": ["other"] * len(rows),
    })


def _hub_textvqa(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "lmms-lab-encoder/textvqa", None, "validation", {
        "image_id": [row.image for row in rows], "question_id": [int(row.id) for row in rows],
        "image": _packed(source, "textvqa", split, rows), **_columns(rows, "question", "answers", "ocr_tokens"),
        "set_name": ["val"] * len(rows),
    })


def _hub_ocrvqa(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "howard-hou/OCR-VQA", None, "test", {
        "image": _packed(source, "ocrvqa", split, rows), "image_id": [row.id for row in rows],
        **_columns(rows, "questions", "answers", "title", "authorName", "genre"), "set_name": ["test"] * len(rows),
    })


def _hub_gqa(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "lmms-lab/GQA", "testdev_balanced_instructions", "testdev", {
        "id": [row.id for row in rows], "imageId": [row.image for row in rows],
        **_columns(rows, "question", "answer", "types"), "isBalanced": [True] * len(rows),
    })
    shown = list({row.image: row for row in rows}.values())
    _table(out, "lmms-lab/GQA", "testdev_balanced_images", "testdev", {
        "id": [row.image for row in shown], "image": _packed(source, "gqa", split, shown),
    })


def _hub_flickr30k(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "umaru97/flickr30k_train_val_test", None, split, {
        "image": _packed(source, "flickr30k", split, rows), "caption": [row.fields["captions"] for row in rows],
        "sentids": [["0"]] * len(rows), "split": [split] * len(rows), "img_id": [row.id for row in rows],
        "filename": [row.image for row in rows],
    })


def _hub_coco(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "yerevann/coco-karpathy", None, split, {
        **_columns(rows, "filepath", "filename"), "sentences": [row.fields["captions"] for row in rows],
        "cocoid": [int(row.id) for row in rows], "url": [""] * len(rows), "split": [split] * len(rows),
    })
    _table(out, "jp1924/KoreanImageCaptioningDataset", None, split, {
        "image": _packed(source, "coco", split, rows), "cocoid": [int(row.id) for row in rows],
    })


def _hub_iconqa(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    if split == "train":
        return
    count = len(rows) + 1
    _table(out, "lmms-lab/ICON-QA", None, split, {
        "question_id": [*(row.id for row in rows), "1"],
        "question": [*(row.fields["question"] for row in rows), "Which picture?"],
        "choices": [*(",".join(row.fields["choices"]) for row in rows), "choice_0.png,choice_1.png"],
        "answer": [*(row.fields["choices"][row.fields["answer"]] for row in rows), "choice_0.png"],
        "query_image": [*_packed(source, "iconqa", split, rows), None],
        "ques_type": ["choose_txt"] * len(rows) + ["choose_img"], "grade": ["prek"] * count,
    })


def _hub_scienceqa(source: Path, out: Path, split: str, rows: list[Row]) -> None:
    _table(out, "derek-thomas/ScienceQA", None, split, {
        "image": _packed(source, "scienceqa", split, rows),
        **_columns(rows, "question", "choices", "answer", "hint", "subject", "topic"),
    })


_HUB = {
    "okvqa": _hub_okvqa, "textvqa": _hub_textvqa, "ocrvqa": _hub_ocrvqa, "gqa": _hub_gqa, "flickr30k": _hub_flickr30k,
    "coco": _hub_coco, "iconqa": _hub_iconqa, "scienceqa": _hub_scienceqa,
}

# ---------------------------------------------------------------------------------------------------------------
# The group's files


def write_group(source: Path, out: Path) -> Path:
    """Write the group's JSON files, with the images and the few official files that they need beside them.

    Returns:
        The folder.
    """
    rows = rows_of(source)
    for path, content in _group_files(rows):
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".jsonl"):
            target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content))
        else:
            target.write_text(json.dumps(content, ensure_ascii=False))
    for name in rows:
        shutil.copytree(source / name, out / name / "images_of_it", ignore=shutil.ignore_patterns("*.json"))
    for name, file in (
        ("okvqa", "OpenEnded_mscoco_val2014_questions.json"), ("okvqa", "mscoco_val2014_annotations.json"),
        ("gqa", "testdev_balanced_questions.json"), ("textvqa", "TextVQA_0.5.1_val.json"),
        ("scienceqa", "problems.json"), ("scienceqa", "pid_splits.json"),
    ):
        shutil.copy(source / name / file, out / name / file)
    return out


def _options(row: Row) -> str:
    return "\n".join(f"{'ABCDE'[n]}. {choice}" for n, choice in enumerate(row.fields["choices"]))


def _talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {**more, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def _group_files(rows: dict[str, dict[str, list[Row]]]) -> Iterator[tuple[str, Any]]:
    yield "okvqa/okvqa_val.jsonl", [
        {"question_id": int(row.id), "image": f"COCO_val2014_{int(row.image):012d}.jpg",
         "text": f"{row.fields['question']}\n{SHORT}"}
        for row in rows["okvqa"]["val2014"]
    ]
    yield "textvqa/llava_textvqa_val_v051_ocr.jsonl", [
        {"question_id": row.image, "image": f"{row.image}.jpg",
         "text": f"{row.fields['question']}\nReference OCR token: {', '.join(row.fields['ocr_tokens'])}\n{SHORT}"}
        for row in rows["textvqa"]["val"]
    ]
    yield "ocrvqa/sampled_ocrvqa_test.jsonl", [
        {"question_id": number, "image": f"{row.id}.jpg", "text": f"{question}\n{SHORT}", "answer": answer}
        for number, row in enumerate(rows["ocrvqa"]["3"])
        for question, answer in zip(row.fields["questions"], row.fields["answers"], strict=True)
    ][:10]
    yield "gqa/llava_gqa_testdev_balanced.jsonl", [
        {"question_id": row.id, "image": f"{row.image}.jpg", "text": f"{row.fields['question']}\n{SHORT}"}
        for row in rows["gqa"]["testdev"]
    ]
    yield "coco/llava_caption_mscoco_test.jsonl", [
        {"id": int(row.id), "image": row.image, "text": "Provide a one-sentence caption for the provided image."}
        for row in rows["coco"]["test"]
    ]
    yield "coco/captions_test5k.json", {
        "images": [{"id": int(row.id)} for row in rows["coco"]["test"]],
        "annotations": [
            {"image_id": int(row.id), "id": number, "caption": caption}
            for row in rows["coco"]["test"] for number, caption in enumerate(row.fields["captions"])
        ],
    }
    yield "coco/coco.json", [
        _talk("<image>\nBriefly describe the content of the image.", caption, id=f"{row.id}_{number}",
              image=f"coco/train2014/{row.image}")
        for row in rows["coco"]["train"] for number, caption in enumerate(row.fields["captions"])
    ]
    yield "flickr30k/flickr30k.json", [
        _talk("Give a brief summary of what you see.\n<image>", caption, id=row.id, image=f"flickr30k/{row.image}")
        for row in rows["flickr30k"]["train"] for caption in row.fields["captions"]
    ]
    yield "iconqa/fixed_iconqa_txt-test.jsonl", [
        {"question_id": f"iconqa_test_{number}", "image": f"iconqa_data/iconqa/test/choose_txt/{row.id}/image.png",
         "text": f"{row.fields['question']}\n{_options(row)}", "answer": "ABCDE"[row.fields["answer"]]}
        for number, row in enumerate(rows["iconqa"]["test"])
    ]
    yield "iconqa/iconqa_txt_train.json", [
        _talk(f"<image>\n{row.fields['question']}\n{_options(row)}", f"Answer: {'ABCDE'[row.fields['answer']]}",
              id=f"iconqa_train_{number}", image=f"iconqa_data/iconqa/train/choose_txt/{row.id}/image.png")
        for number, row in enumerate(rows["iconqa"]["train"])
    ]
    yield "scienceqa/llava_test_CQM-A.json", [
        _talk((f"Context: {row.fields['hint']}\n" if row.fields["hint"] else "") + f"{row.fields['question']}\n"
              f"{_options(row)}" + ("\n<image>" if row.image is not None else ""),
              "ABCDE"[row.fields["answer"]], id=row.id)
        for row in rows["scienceqa"]["test"]
    ]
