"""`python -m benchmark <verb> ...`."""

import sys

from benchmark.core import terminal
from benchmark.core.project import foreign_package

if __name__ == "__main__":  # worker processes import this module again
    if message := foreign_package():
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    from benchmark.cli import main

    code = main(sys.argv[1:])
    terminal.discard_rest()
    sys.exit(code)
