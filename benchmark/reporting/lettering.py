"""Free text (names, answers) in places that cannot show every character: figures, LaTeX, spreadsheets."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.text import Text

PREFERRED = ("Noto Sans", "DejaVu", "WenQuanYi", "Source Han Sans")  # of several fonts that have a character
_reported: set[str] = set()


def tidy(text: str, keep: str = "") -> str:
    """Return text without control and other invisible characters, and with single spaces.

    Args:
        text: from a user, a dataset or a model.
        keep: white space to keep, such as a line break.
    """
    seen = (" " if c.isspace() and c not in keep else c for c in text)
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn")
    shown = (c for c in seen if c in keep or unicodedata.category(c) not in hidden and not "\ufe00" <= c <= "\ufe0f")
    return re.sub(" +", " ", "".join(shown))


def spelled(character: str) -> str:
    """Return the replacement of a character that cannot be shown: "[spider]" for a symbol, "[U+4E2D]" for a letter."""
    name = unicodedata.name(character, "")
    symbol = unicodedata.category(character) in ("So", "Sm", "Sc", "Sk")
    return f"[{name.lower()}]" if name and symbol else f"[U+{ord(character):04X}]"


# -- figures ---------------------------------------------------------------------------------------------------


def settle(figure: Figure) -> None:
    """Make every text of a figure drawable: with an installed font, or else spelled out with a note.

    Mathematical texts are ours and stay as they are.

    Args:
        figure: finished, not yet saved.
    """
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_text() and not text.get_parse_math()]
    for text in texts:
        if (clean := tidy(text.get_text(), keep="\n")) != text.get_text():
            text.set_text(clean)
    if all(text.get_text().isascii() for text in texts):
        return
    known = {text: get_font(findfont(text.get_fontproperties())).get_charmap() for text in texts}
    lacking = {text: {c for c in text.get_text() if c != "\n" and ord(c) not in known[text]} for text in texts}
    families = _fonts_for(set().union(*lacking.values()))
    for text in (text for text in texts if lacking[text]):
        text.set_fontfamily([*text.get_fontfamily(), *dict.fromkeys(families.values())])
        _spell(text, lacking[text] - families.keys())


def _spell(text: Text, characters: set[str]) -> None:
    """Spell out characters of a text, with one note about each."""
    text.set_text("".join(spelled(c) if c in characters else c for c in text.get_text()))
    if new := sorted(characters - _reported):
        _reported.update(new)
        print(
            f"Note: no font here has {' '.join(new)}; figures show {' '.join(map(spelled, new))} instead. "
            "Install a font that has them (Noto, for example) and draw again.",
            file=sys.stderr,
        )


def _fonts_for(characters: set[str]) -> dict[str, str]:
    """Return character -> a font family of this machine that has it, of as few families as will do."""
    from matplotlib import font_manager

    found: dict[str, str] = {}
    if not characters:
        return found
    upright = re.compile("bold|italic|oblique|black|thin|light", re.IGNORECASE)
    paths = [path for path in font_manager.findSystemFonts() if not upright.search(path)]
    fonts = {}
    for path in sorted(paths):
        try:
            font = font_manager.get_font(path)
            if font.scalable and (has := characters & {chr(code) for code in font.get_charmap()}):
                fonts[path] = (font.family_name, has)
        except (OSError, RuntimeError):  # a bitmap or broken font
            continue
    while left := characters - found.keys():
        path, (family, has) = max(
            fonts.items(), key=lambda item: (len(item[1][1] & left), item[1][0].startswith(PREFERRED), item[0]),
            default=("", ("", set())),
        )
        if not has & left:
            return found
        font_manager.fontManager.addfont(path)
        found.update(dict.fromkeys(has & left, family))
    return found


# -- LaTeX -----------------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\texttt{\char34}",  # \textquotedbl needs another font encoding
    "[": "{[}", "]": "{]}",  # after \\ a bracket would be read as its argument
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$",
    "°": r"$^{\circ}$", "µ": r"$\mu$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\rightarrow$", "−": "$-$",
    "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "…": r"\ldots{}", "ß": r"\ss{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "å": r"\aa{}", "Å": r"\AA{}", "ı": r"\i{}",
}
_LATEX |= {
    chr(code): rf"$\{unicodedata.name(chr(code)).rpartition(' ')[2].lower()}$"
    for code in range(0x3B1, 0x3CA) if code not in (0x3BB, 0x3BF, 0x3C2)  # lambda's name is "lamda"; no \omicron
} | {"λ": r"$\lambda$"}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}


def latex(text: str) -> str:
    """Return text as ASCII that every LaTeX engine and font encoding prints; other Unicode is spelled out."""
    return "".join(_latex(character) for character in unicodedata.normalize("NFC", tidy(text)))


def _latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    base, *accents = list(unicodedata.normalize("NFKD", character))
    if len(accents) == 1 and accents[0] in _ACCENTS and base.isascii():
        base = rf"\{base}" if base in "ij" and accents[0] != "\u0327" else base
        return rf"\{_ACCENTS[accents[0]]}{{{base}}}"
    return "".join(_LATEX.get(c, c) for c in spelled(character)) + r"\allowbreak{}"


# -- spreadsheets ----------------------------------------------------------------------------------------------


def spreadsheet(frame: pd.DataFrame) -> str:
    """Return a frame as CSV with four decimals, in which a spreadsheet reads no text as a formula.

    An apostrophe before such text marks it as text.
    """
    from pandas.api.types import is_numeric_dtype

    safe = frame.copy(deep=False)
    for column in (name for name in frame.columns if not is_numeric_dtype(frame[name])):
        safe[column] = frame[column].map(_no_formula)
    return safe.to_csv(index=False, float_format="%.4f")


def _no_formula(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return value if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|-", value) else f"'{value}"


def as_written(cell: str) -> str:
    """Return the text that `spreadsheet` wrote into a cell."""
    return cell[1:] if cell.startswith("'") and _no_formula(cell[1:]) == cell else cell


def markdown(text: str) -> str:
    """Return text on one line with every character that Markdown would interpret escaped."""
    return re.sub(r"([\\|*_<>`~$\[\]])", r"\\\1", tidy(text))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose columns are padded to one width.

    Args:
        rows: the heads first; cells with free text went through `markdown`.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |" for row in rows]
    return [lines[0], f"| {' | '.join('-' * width for width in widths)} |", *lines[1:]]
