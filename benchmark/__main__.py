"""`python -m benchmark <verb> ...`."""

import sys

from benchmark.cli import main

if __name__ == "__main__":  # worker processes import this module again
    sys.exit(main(sys.argv[1:]))
