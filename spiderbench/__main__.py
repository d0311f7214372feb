"""The console command `spiderbench`, the same as `python -m benchmark`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run one command and exit with its code."""
    from spiderbench import _foreign_package

    if message := _foreign_package(("methods", "eval")):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    from benchmark.cli import main as run
    from benchmark.core import terminal

    code = run(sys.argv[1:])
    terminal.discard_rest()
    sys.exit(code)


if __name__ == "__main__":  # worker processes import this module again
    main()
