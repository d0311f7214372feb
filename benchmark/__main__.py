"""`python -m benchmark <verb> ...`."""

import sys

from benchmark.cli import main
from benchmark.core import terminal

if __name__ == "__main__":  # worker processes import this module again
    code = main(sys.argv[1:])
    terminal.discard_rest()
    sys.exit(code)
