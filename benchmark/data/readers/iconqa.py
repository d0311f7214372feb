"""IconQA, sub-task choose_txt: questions about abstract diagrams with text options (Lu et al. 2021).

Files below iconqa/iconqa_data/: problems.json, pid_splits.json, iconqa/<name>/choose_txt/<pid>/image.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.data import check
from benchmark.data.layout import answer_format, choice, letter, need, one_name, option_lines, read_json, render
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

SPLITS = {"train": "train", "validation": "val", "test": "test"}


def load(root: Path, split: str, spec: DatasetLike) -> list[Record]:
    """Read a split; target and reference are the correct option in `options.target_format` ('{letter}').

    Args:
        root: data folder.
        split: train, validation or test.
        spec: prompt fields: question, options (lines 'A. x').

    Returns:
        Records in the order of pid_splits.json.

    Raises:
        UserError: a file or key is missing, or an answer is not an option.
    """
    folder, name = root / "iconqa" / "iconqa_data", one_name(spec, split, SPLITS)
    path, split_file = folder / "problems.json", folder / "pid_splits.json"
    problems = read_json(path)
    records = []
    for pid in need(read_json(split_file), f"choose_txt_{name}", split_file):
        entry, where = need(problems, str(pid), path), f"problem {pid}"
        options, index = choice(entry, path, where)
        question = check.text(entry, "question", path, where, blank=True)
        target = answer_format(spec, index, options)
        records.append(Record(
            item_id=str(pid),
            dataset=spec.id,
            split=split,
            image=folder / "iconqa" / name / "choose_txt" / str(pid) / "image.png",
            prompt=render(spec, question=question, options=option_lines(options)),
            target=target,
            references=(target,),
            options=options,
            group=str(pid),
            meta={
                "question": question,
                "question_type": (entry.get("skills") or [entry.get("ques_type") or ""])[0],
                "question_id": str(pid),
                "image_id": str(pid),
                "gold": letter(index),
            },
        ))
    return records
