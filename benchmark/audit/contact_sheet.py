"""A contact sheet: images of a dataset with their prompts and answers, for inspection by eye.

`python -m benchmark data show gqa -n 16` calls `main`.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import write_atomic
from benchmark.data import SPLITS, DatasetLike, load, subset
from benchmark.data.layout import letter
from benchmark.data.record import Record, open_image

COLUMNS = 4
SIDE = 300  # width of an image and of the text below it, in pixels
GAP = 20
LINE = 20
BLACK, GREY, GREEN = "#111111", "#777777", "#006633"


def contact_sheet(records: Sequence[Record]) -> Image.Image:
    """Draw records in rows of four: image, item id, prompt, answers.

    Args:
        records: the records to show, in this order.

    Returns:
        PIL image, mode RGB; the longest text of a row sets its height.

    Raises:
        UserError: an image is missing or unreadable.
    """
    cells = [_cell(record) for record in records]
    columns = min(COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    size = (columns * (SIDE + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1))
    sheet = Image.new("RGB", size, "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (GAP + column * (SIDE + GAP), top))
        top += height + GAP
    return sheet


def answer_lines(record: Record) -> list[str]:
    """Return the correct answers of a record: the option with its letter, counted answers, or all captions."""
    if record.options is not None:
        texts = {letter(index): option for index, option in enumerate(record.options)}
        return [f"{record.target}  ({texts[record.meta['gold']]})"]
    counts = Counter(record.references)
    if len(record.references) == 1:
        return [record.target or ""]
    return [f"{count} x {text}" if len(counts) < len(record.references) else f"- {text}"
            for text, count in counts.most_common()]


def _cell(record: Record) -> Image.Image:
    """Draw one record, SIDE pixels wide."""
    plain, bold = _font("normal"), _font("bold")
    kind = record.meta.get("question_type")
    lines = [(f"{record.item_id}  {kind}" if kind else record.item_id, plain, GREY)]
    lines += [(line, plain, BLACK) for part in record.prompt.split("\n") for line in _wrap(part, plain)]
    lines += [(line, bold, GREEN) for part in answer_lines(record) for line in _wrap(part, bold)]
    picture = Image.new("RGB", (SIDE, SIDE), "#eeeeee")
    if record.image is None:
        ImageDraw.Draw(picture).text((GAP, SIDE // 2), "no image", fill=GREY, font=plain)
    else:
        image = open_image(record)
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        picture.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    cell = Image.new("RGB", (SIDE, SIDE + 6 + LINE * len(lines)), "white")
    cell.paste(picture, (0, 0))
    draw = ImageDraw.Draw(cell)
    for number, (text, font, colour) in enumerate(lines):
        draw.text((0, SIDE + 6 + LINE * number), text, fill=colour, font=font)
    return cell


def _font(weight: str) -> ImageFont.FreeTypeFont:
    """Return the DejaVu Sans that matplotlib ships, so that the sheet looks the same on every machine."""
    name = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(name), 14)


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a line into pieces at most SIDE pixels wide, between words where possible."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= SIDE:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > SIDE:
            fits = next(cut for cut in range(len(word) - 1, 0, -1) if font.getlength(word[:cut]) <= SIDE)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line]


def show(spec: DatasetLike, root: Path, split: str, count: int, out: Path) -> Path:
    """Write the contact sheet of a split. The choice of items never changes.

    Args:
        spec: the dataset.
        root: data folder.
        split: train, validation or test.
        count: number of items, chosen by `benchmark.data.subset` with seed 0.
        out: PNG file to write.

    Returns:
        The path written.

    Raises:
        UserError: data or images are missing, or the file cannot be written.
    """
    records = subset(load(spec, root, split), count)
    buffer = io.BytesIO()
    contact_sheet(records).save(buffer, format="PNG")
    write_atomic(out, buffer.getvalue())
    return out


def main(argv: Sequence[str], specs: Mapping[str, DatasetLike], root: Path) -> int:
    """Parse `<dataset> [-n 16] [--split test] [--out file.png]`, write the sheet and print its path.

    Args:
        argv: arguments after `data show`.
        specs: the profile's datasets by id.
        root: data folder.

    Returns:
        Exit code 0.

    Raises:
        UserError: the dataset is unknown; or see `show`.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmark data show")
    parser.add_argument("dataset", help=", ".join(specs))
    parser.add_argument("-n", type=int, default=16, metavar="COUNT", help="items to show (default 16)")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--out", type=Path, help="PNG file (default build/<dataset>-<split>.png)")
    asked = parser.parse_args(argv)
    if asked.dataset not in specs:
        raise UserError(f"Unknown dataset {asked.dataset!r}.{did_you_mean(asked.dataset, specs)}")
    out = asked.out or Path("build") / f"{asked.dataset}-{asked.split}.png"
    print(show(specs[asked.dataset], Path(root), asked.split, asked.n, out))
    return 0
