"""ScienceQA: school questions with options, about half of them without an image (Lu et al. 2022).

Files below scienceqa/: problems.json, pid_splits.json, images/<name>/<pid>/image.png.
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
    """Read a split, items with and without an image; the reference is the letter of the correct option.

    The target is the same option in the form of `options.target_format` ('{letter}'). `options.single_spaces` treats
    the prompt as LLaVA's conversion does: two spaces become one, and surrounding white space is removed.

    Args:
        root: data folder.
        split: train, validation or test.
        spec: prompt fields: context ('Context: <hint>' and a line break, or empty), context_or_na (the hint or
            'N/A'), question, options (lines 'A. x'), options_inline ('(A) x (B) y').

    Returns:
        Records in the order of pid_splits.json; question_type is image or text.

    Raises:
        UserError: a file or key is missing, or an answer is not an option.
    """
    folder, name = root / "scienceqa", one_name(spec, split, SPLITS)
    path, split_file = folder / "problems.json", folder / "pid_splits.json"
    problems = read_json(path)
    records = []
    for pid in need(read_json(split_file), name, split_file):
        entry, where = need(problems, str(pid), path), f"problem {pid}"
        options, index = choice(entry, path, where)
        question = check.text(entry, "question", path, where, blank=True)
        hint = check.text(entry, "hint", path, where, blank=True)
        file_name = check.text(entry, "image", path, where, null=True)
        prompt = render(
            spec, context=f"Context: {hint}\n" if hint else "", context_or_na=hint.strip() or "N/A", question=question,
            options=option_lines(options),
            options_inline=" ".join(f"({letter(n)}) {option}" for n, option in enumerate(options)),
        )
        if spec.options.get("single_spaces"):
            prompt = prompt.replace("  ", " ").strip()
        records.append(Record(
            item_id=str(pid),
            dataset=spec.id,
            split=split,
            image=folder / "images" / name / str(pid) / file_name if file_name else None,
            prompt=prompt,
            target=answer_format(spec, index, options),
            references=(letter(index),),
            options=options,
            group=str(pid),
            meta={
                "question": question,
                "question_type": "image" if file_name else "text",
                "question_id": str(pid),
                "image_id": str(pid) if file_name else None,
                "subject": entry.get("subject"),
                "topic": entry.get("topic"),
                "gold": letter(index),
            },
        ))
    return records
