"""JSON lines for a user's own target; an error names the file, the line and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.data import check


@dataclass(frozen=True)
class JsonRow:
    """One line of a file.

    Attributes:
        path: the file.
        where: the position in it, "line 3".
        content: the parsed line, a JSON object.
    """

    path: Path
    where: str
    content: Any

    def text(self, key: str) -> str:
        """Return a string; raise UserError if it is missing, blank or of another type."""
        return check.text(self.content, key, self.path, self.where)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of one or more strings; raise UserError if it is anything else."""
        return tuple(check.texts(self.content, key, self.path, self.where))

    def image(self, key: str) -> Path | None:
        """Return an image file, named relative to the file of the rows; None for null.

        Raises:
            UserError: the name is missing or not a string, or the file does not exist.
        """
        name = check.text(self.content, key, self.path, self.where, null=True)
        if name is None:
            return None
        image = self.path.parent / name
        if not image.is_file():
            raise UserError(f"{self.path}: {self.where} names the image {image}, which does not exist. {check.FIX}")
        return image


def json_rows(path: Path) -> list[JsonRow]:
    """Read a file with one JSON object per line. Blank lines are skipped; only a line feed ends a line.

    Args:
        path: a UTF-8 file.

    Returns:
        Its rows.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; the message names file and line.
    """
    return [JsonRow(path, where, check.mapping(row, path, where)) for where, row in check.read_lines(path)]
