"""Results of `verify`: faults with cell, file and reason, and counts of the checks."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmark.core.errors import UserError


class Wrong(Exception):
    """A check found a fault; the message is its reason."""


@dataclass(frozen=True)
class Fault:
    """A fault in one file of one cell. The cell is '-' for files outside the cells."""

    cell: str
    file: str
    reason: str

    def __str__(self) -> str:
        """Return the fault in one line."""
        return " ".join(f"{self.cell}: {self.file}: {self.reason}".split())


@dataclass
class Findings:
    """Counts of the checks, and the faults.

    Args:
        show: called with each fault when it is found.
    """

    show: Callable[[Fault], None]
    faults: list[Fault] = field(default_factory=list)
    cells: int = 0
    unfinished: int = 0
    rescored: int = 0
    answers: int = 0
    rounded: int = 0
    files: int = 0
    tables: int = 0
    other_layout: int = 0
    without_code: int = 0
    without_items: int = 0
    older: int = 0
    dirty: int = 0

    def add(self, cell: str, file: str, reason: str) -> None:
        """Add a fault."""
        fault = Fault(cell, file, reason)
        if fault not in self.faults:
            self.faults.append(fault)
            self.show(fault)

    @contextlib.contextmanager
    def checking(self, cell: str, file: str) -> Iterator[None]:
        """Turn any error that a damaged file causes into a fault of this file."""
        try:
            yield
        except (Wrong, UserError) as error:
            self.add(cell, file, str(error))
        except KeyError as error:
            self.add(cell, file, f"lacks the key {error}")
        except OSError as error:
            self.add(cell, file, error.strerror or str(error))
        except (EOFError, ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
            self.add(cell, file, f"cannot be read ({type(error).__name__}: {str(error)[:120]})")
