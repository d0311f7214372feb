"""Everything that can appear in a picture: icons with one fact each, colours, places, fonts.

The glyphs come from the Font Awesome 6 Free Solid font (icons CC BY 4.0, font SIL OFL 1.1) inside the pinned
package fonticon-fontawesome6; nothing of the font is stored in this repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from benchmark.core.errors import UserError


@dataclass(frozen=True)
class Icon:
    """One drawable thing.

    Args:
        glyph: code point in the icon font.
        name: singular noun used upstream.
        plural: plural noun.
        category: animal, vehicle, food, tool or building.
        synonym: noun used by the far captioning style.
        fact: the answer to the category's knowledge question; it cannot be seen.
        alternatives: answers that some annotators give instead.
    """

    glyph: int
    name: str
    plural: str
    category: str
    synonym: str
    fact: str
    alternatives: tuple[str, str]


ICONS = (
    Icon(0xF6BE, "cat", "cats", "animal", "kitten", "mice", ("milk", "meat")),
    Icon(0xF6D3, "dog", "dogs", "animal", "puppy", "bones", ("meat", "biscuits")),
    Icon(0xF6F0, "horse", "horses", "animal", "pony", "hay", ("grass", "oats")),
    Icon(0xF6C8, "cow", "cows", "animal", "calf", "grass", ("hay", "leaves")),
    Icon(0xF578, "fish", "fishes", "animal", "trout", "worms", ("algae", "insects")),
    Icon(0xF52E, "frog", "frogs", "animal", "toad", "flies", ("insects", "worms")),
    Icon(0xF4BA, "dove", "doves", "animal", "pigeon", "seeds", ("corn", "crumbs")),
    Icon(0xF717, "spider", "spiders", "animal", "tarantula", "insects", ("flies", "bugs")),
    Icon(0xF6ED, "hippo", "hippos", "animal", "hippopotamus", "plants", ("grass", "leaves")),
    Icon(0xF1B9, "car", "cars", "vehicle", "automobile", "garage", ("road", "street")),
    Icon(0xF0D1, "truck", "trucks", "vehicle", "lorry", "highway", ("road", "depot")),
    Icon(0xF238, "train", "trains", "vehicle", "locomotive", "station", ("rails", "tunnel")),
    Icon(0xF072, "plane", "planes", "vehicle", "jet", "airport", ("sky", "runway")),
    Icon(0xF21A, "ship", "ships", "vehicle", "vessel", "harbor", ("sea", "dock")),
    Icon(0xF206, "bicycle", "bicycles", "vehicle", "bike", "path", ("road", "park")),
    Icon(0xF722, "tractor", "tractors", "vehicle", "harvester", "farm", ("field", "barn")),
    Icon(0xF533, "helicopter", "helicopters", "vehicle", "chopper", "helipad", ("sky", "roof")),
    Icon(0xF135, "rocket", "rockets", "vehicle", "spaceship", "space", ("sky", "moon")),
    Icon(0xF5D1, "apple", "apples", "food", "fruit", "orchard", ("tree", "garden")),
    Icon(0xF787, "carrot", "carrots", "food", "vegetable", "soil", ("garden", "field")),
    Icon(0xF7EF, "cheese", "cheeses", "food", "cheddar", "milk", ("dairy", "cows")),
    Icon(0xF7FB, "egg", "eggs", "food", "eggshell", "hen", ("bird", "nest")),
    Icon(0xF7EC, "bread", "breads", "food", "toast", "flour", ("wheat", "dough")),
    Icon(0xF818, "pizza", "pizzas", "food", "pie", "dough", ("flour", "oven")),
    Icon(0xF810, "icecream", "icecreams", "food", "sundae", "cream", ("milk", "sugar")),
    Icon(0xF805, "burger", "burgers", "food", "hamburger", "beef", ("meat", "bun")),
    Icon(0xF094, "lemon", "lemons", "food", "citrus", "grove", ("tree", "orchard")),
    Icon(0xF6E3, "hammer", "hammers", "tool", "mallet", "nails", ("wood", "boards")),
    Icon(0xF1FC, "brush", "brushes", "tool", "paintbrush", "paint", ("canvas", "walls")),
    Icon(0xF084, "key", "keys", "tool", "latchkey", "locks", ("doors", "gates")),
    Icon(0xF0AD, "wrench", "wrenches", "tool", "spanner", "bolts", ("nuts", "pipes")),
    Icon(0xF0E9, "umbrella", "umbrellas", "tool", "parasol", "rain", ("sun", "storms")),
    Icon(0xF030, "camera", "cameras", "tool", "lens", "photos", ("film", "pictures")),
    Icon(0xF7A6, "guitar", "guitars", "tool", "banjo", "songs", ("music", "concerts")),
    Icon(0xF0F3, "bell", "bells", "tool", "chime", "alarms", ("music", "doors")),
    Icon(0xF51A, "broom", "brooms", "tool", "sweeper", "dust", ("dirt", "floors")),
    Icon(0xF015, "house", "houses", "building", "cottage", "family", ("parents", "people")),
    Icon(0xF51D, "church", "churches", "building", "chapel", "priest", ("people", "choir")),
    Icon(0xF0F8, "hospital", "hospitals", "building", "clinic", "doctor", ("nurse", "patient")),
    Icon(0xF549, "school", "schools", "building", "academy", "teacher", ("pupil", "students")),
    Icon(0xF54F, "shop", "shops", "building", "store", "seller", ("customer", "clerk")),
    Icon(0xF7AE, "igloo", "igloos", "building", "hut", "hunter", ("people", "fisher")),
    Icon(0xE57D, "tent", "tents", "building", "shelter", "camper", ("hiker", "tourist")),
    Icon(0xF275, "factory", "factories", "building", "mill", "worker", ("engineer", "boss")),
    Icon(0xF678, "mosque", "mosques", "building", "minaret", "imam", ("people", "visitor")),
)

ICON = {icon.name: icon for icon in ICONS}
CATEGORIES = ("animal", "vehicle", "food", "tool", "building")

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 20),
    "green": (25, 140, 55),
    "blue": (40, 90, 215),
    "purple": (130, 50, 170),
    "pink": (250, 120, 190),
    "black": (25, 25, 25),
}
"""RGB of every colour name, 0-255."""

COLOUR_SYNONYMS = {
    "red": "crimson", "orange": "amber", "yellow": "golden", "green": "emerald",
    "blue": "azure", "purple": "violet", "pink": "rosy", "black": "dark",
}

PLACES = {
    "meadow": ((205, 228, 245), (178, 222, 165)),
    "beach": ((190, 225, 240), (240, 226, 190)),
    "snow": ((200, 212, 228), (244, 247, 250)),
    "street": ((222, 222, 226), (176, 178, 182)),
    "room": ((240, 222, 214), (205, 180, 160)),
}
"""Upper and lower background colour of every place, RGB 0-255."""

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "hexagon")
"""Abstract shapes of the diagrams."""

WORD_FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf", "STIXGeneralBol.ttf")


@cache
def icon_font_path() -> Path:
    """Return the icon font's path inside the installed package.

    Raises:
        UserError: the package is missing.
    """
    spec = find_spec("fonticon_fa6")
    if spec is None or spec.origin is None:
        raise UserError(
            "The icon font is missing: package fonticon-fontawesome6 is not installed. Fix: run make again."
        )
    return Path(spec.origin).parent / "fonts" / "Font Awesome 6 Free-Solid-900.otf"


@cache
def word_font_path(name: str) -> Path:
    """Return the path of a text font that matplotlib carries."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
