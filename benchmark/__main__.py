"""`python -m benchmark <verb> ...`."""

import sys

from benchmark import terminal
from benchmark.cli import main

if __name__ == "__main__":  # worker processes import this module again
    code = main(sys.argv[1:])
    terminal.discard_rest()
    sys.exit(code)
