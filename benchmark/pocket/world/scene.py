"""What a picture shows, as data, and how it is drawn.

A picture is a scene (place, coloured things in a 3 x 3 grid, signs), a book cover or a diagram. Each has a `key()`
without pixels: two pictures with one key show the same content. `bucket(key)` maps a key to one of 1,000 buckets, and
every (data set, split) owns its own buckets, so no content can appear in two of them.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from benchmark.pocket.world.icons import COLOURS, ICON, PLACES, WORD_FONTS, icon_font_path, word_font_path

SIZE = 112
"""Side of a square picture in pixels."""
GRID = 3
CELL = SIZE / GRID
BUCKETS = 1000
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")


def bucket(key: str) -> int:
    """Return the bucket (0 to 999) of a content key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % BUCKETS


@dataclass(frozen=True)
class Thing:
    """One icon: its name, colour, grid cell (row, column) and, as visual noise, size and offset in pixels."""

    icon: str
    colour: str
    cell: tuple[int, int]
    size: int
    offset: tuple[int, int]

    @property
    def label(self) -> str:
        """Colour and name, for example 'red car'."""
        return f"{self.colour} {self.icon}"


@dataclass(frozen=True)
class Sign:
    """A coloured board with one word, across a whole row of the grid."""

    word: str
    colour: str
    row: int
    font: str
    shift: int


@dataclass(frozen=True)
class Scene:
    """A place with things and signs."""

    place: str
    things: tuple[Thing, ...]
    signs: tuple[Sign, ...] = ()

    def key(self) -> str:
        """Content without pixels: place, sorted (icon, colour, cell), sorted words."""
        things = sorted(f"{t.icon},{t.colour},{t.cell[0]}{t.cell[1]}" for t in self.things)
        signs = sorted(f"{s.word},{s.colour},{s.row}" for s in self.signs)
        return f"scene|{self.place}|{';'.join(things)}|{';'.join(signs)}"

    def draw(self, rng: random.Random) -> Image.Image:
        """Return the picture, SIZE x SIZE RGB; `rng` moves only background shades."""
        image = _background(self.place, rng)
        for thing in self.things:
            _paste_icon(image, thing)
        for sign in self.signs:
            _draw_sign(image, sign)
        return image


@dataclass(frozen=True)
class Cover:
    """A book cover: title (two words), author (first, last), genre, year, layout."""

    title: tuple[str, str]
    author: tuple[str, str]
    genre: str
    year: str
    colour: str
    font: str
    shift: int

    def key(self) -> str:
        """Content without pixels."""
        return f"cover|{' '.join(self.title)}|{' '.join(self.author)}|{self.genre}|{self.year}"

    def draw(self, rng: random.Random) -> Image.Image:
        """Return the cover, 96 x 112 RGB."""
        width = 96
        ground = tuple(235 + rng.randrange(-12, 13) for _ in range(3))
        image = Image.new("RGB", (width, SIZE), ground)
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0, width - 1, 35), fill=COLOURS[self.colour])
        ink = _ink(self.colour)
        _centred_text(image, self.title[0], self.font, 17, width, 1 + self.shift, ink)
        _centred_text(image, self.title[1], self.font, 17, width, 17 + self.shift, ink)
        mask = _icon_mask(GENRES[self.genre], 26)
        image.paste((60, 60, 60), ((width - mask.width) // 2, 41), mask)
        _centred_text(image, self.author[0], self.font, 14, width, 69, (20, 20, 20))
        _centred_text(image, self.author[1], self.font, 14, width, 82, (20, 20, 20))
        _centred_text(image, self.year, self.font, 13, width, 97, (20, 20, 20))
        return image


@dataclass(frozen=True)
class Shape:
    """One shape of a diagram in a cell of its grid."""

    kind: str
    colour: str
    cell: tuple[int, int]
    filled: bool


@dataclass(frozen=True)
class Diagram:
    """An abstract drawing on white: shapes on a grid of `rows` x `columns`."""

    rows: int
    columns: int
    shapes: tuple[Shape, ...]

    def key(self) -> str:
        """Content without pixels."""
        shapes = sorted(f"{s.kind},{s.colour},{s.cell[0]}{s.cell[1]},{int(s.filled)}" for s in self.shapes)
        return f"diagram|{self.rows}x{self.columns}|{';'.join(shapes)}"

    def layout(self) -> tuple[float, float, float, int]:
        """Return side of a cell, left and top of the grid, height of the picture, in pixels."""
        step = SIZE / max(self.columns, 3)
        height = max(int(round(step * self.rows)), int(SIZE * 0.6))
        return step, (SIZE - step * self.columns) / 2, (height - step * self.rows) / 2, height

    def draw(self, rng: random.Random) -> Image.Image:
        """Return the diagram, SIZE wide and at most SIZE high, RGB; `rng` moves shapes by a pixel or two."""
        step, left, top, height = self.layout()
        image = Image.new("RGB", (SIZE, height), (255, 255, 255))
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            x = left + (shape.cell[1] + 0.5) * step + rng.uniform(-1.5, 1.5)
            y = top + (shape.cell[0] + 0.5) * step + rng.uniform(-1.5, 1.5)
            draw_shape(pen, shape, x, y, 0.36 * step)
        return image


GENRES = {
    "cooking": "pizza", "travel": "plane", "science": "rocket", "music": "guitar",
    "nature": "frog", "religion": "church", "farming": "tractor", "crime": "key",
}
"""The icon that marks each genre on a cover."""


def draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, x: float, y: float, r: float) -> None:
    """Draw one shape centred at (x, y) with radius r pixels."""
    from math import cos, pi, sin

    colour = COLOURS[shape.colour]
    fill = colour if shape.filled else None

    def ngon(n: int, start: float, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
        return [
            (
                x + r * radii[k % len(radii)] * cos(start + 2 * pi * k / n),
                y + r * radii[k % len(radii)] * sin(start + 2 * pi * k / n),
            )
            for k in range(n)
        ]

    if shape.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=colour, width=3)
    elif shape.kind == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(int(r * 0.45), 3))
    elif shape.kind == "cross":
        w = r * 0.36
        points = [
            (-w, -r),
            (w, -r),
            (w, -w),
            (r, -w),
            (r, w),
            (w, w),
            (w, r),
            (-w, r),
            (-w, w),
            (-r, w),
            (-r, -w),
            (-w, -w),
        ]
        pen.polygon([(x + a, y + b) for a, b in points], fill=fill, outline=colour, width=2)
    else:
        points = {
            "square": ngon(4, pi / 4),
            "diamond": ngon(4, 0.0, (0.8, 1.1)),
            "triangle": ngon(3, -pi / 2),
            "hexagon": ngon(6, 0.0),
            "star": ngon(10, -pi / 2, (1.1, 0.45)),
        }[shape.kind]
        pen.polygon(points, fill=fill, outline=colour, width=3)


def random_thing(rng: random.Random, icon: str, colour: str, cell: tuple[int, int]) -> Thing:
    """Return a thing with random size (26 to 34 px) and offset inside its cell."""
    return Thing(icon, colour, cell, rng.randrange(26, 35), (rng.randrange(-2, 3), rng.randrange(-2, 3)))


def _background(place: str, rng: random.Random) -> Image.Image:
    upper, lower = (tuple(c + rng.randrange(-6, 7) for c in colour) for colour in PLACES[place])
    horizon = rng.randrange(40, 60)
    image = Image.new("RGB", (SIZE, SIZE), upper)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, horizon, SIZE, SIZE), fill=lower)
    darker = tuple(c - 22 for c in lower)
    if place == "meadow":
        for _ in range(24):
            x, y = rng.randrange(SIZE), rng.randrange(horizon, SIZE)
            pen.line((x, y, x, y - 3), fill=darker)
    elif place == "beach":
        pen.rectangle((0, horizon - 10, SIZE, horizon), fill=(120, 180, 215))
    elif place == "snow":
        for _ in range(24):
            x, y = rng.randrange(SIZE), rng.randrange(SIZE)
            pen.ellipse((x, y, x + 2, y + 2), fill=(255, 255, 255))
    elif place == "street":
        for x in range(4, SIZE, 20):
            pen.rectangle((x, SIZE - 6, x + 9, SIZE - 4), fill=(245, 245, 245))
    else:
        for x in range(0, SIZE, 14):
            pen.line((x, 0, x, horizon), fill=tuple(c - 10 for c in upper))
    return image


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _icon_mask(name: str, size: int) -> Image.Image:
    """Return the glyph as an 8-bit mask that fits size x size pixels."""
    font = _font(str(icon_font_path()), 64)
    glyph = chr(ICON[name].glyph)
    x0, y0, x1, y1 = font.getbbox(glyph)
    mask = Image.new("L", (int(x1 - x0), int(y1 - y0)), 0)
    ImageDraw.Draw(mask).text((-x0, -y0), glyph, font=font, fill=255)
    scale = size / max(mask.size)
    return mask.resize(
        (max(1, round(mask.width * scale)), max(1, round(mask.height * scale))), Image.Resampling.LANCZOS
    )


def _paste_icon(image: Image.Image, thing: Thing) -> None:
    mask = _icon_mask(thing.icon, thing.size)
    x = round((thing.cell[1] + 0.5) * CELL + thing.offset[0] - mask.width / 2)
    y = round((thing.cell[0] + 0.5) * CELL + thing.offset[1] - mask.height / 2)
    image.paste(COLOURS[thing.colour], (x, y), mask)


def _ink(colour: str) -> tuple[int, int, int]:
    red, green, blue = COLOURS[colour]
    return (15, 15, 15) if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else (250, 250, 250)


def _draw_sign(image: Image.Image, sign: Sign) -> None:
    top = round(sign.row * CELL) + 6 + sign.shift
    pen = ImageDraw.Draw(image)
    pen.rectangle((6, top, SIZE - 7, top + 24), fill=COLOURS[sign.colour], outline=(60, 60, 60))
    _centred_text(image, sign.word, sign.font, 20, SIZE, top, _ink(sign.colour), margin=10)


def _centred_text(
    image: Image.Image,
    text: str,
    font: str,
    size: int,
    width: int,
    top: int,
    ink: tuple[int, int, int],
    margin: int = 4,
) -> None:
    """Draw one word centred, shrunk until it fits the width less a margin in px on either side."""
    image.paste(ink, (0, top - size), _word_mask(text, font, size, width, margin))


@cache
def _word_mask(text: str, font: str, size: int, width: int, margin: int) -> Image.Image:
    """Return where a word has ink, in a strip of the width and of three times the size, which begins at -size px."""
    face, fitted = _font(str(word_font_path(font)), size), size
    while face.getlength(text) > width - 2 * margin:
        fitted -= 1
        face = _font(str(word_font_path(font)), fitted)
    mask = Image.new("L", (width, 3 * size), 0)
    ImageDraw.Draw(mask).text(((width - face.getlength(text)) / 2, size), text, font=face, fill=255)
    return mask


def random_font(rng: random.Random) -> str:
    """Return one of the text fonts."""
    return rng.choice(WORD_FONTS)
