"""`python -m benchmark <verb> ...`."""

import sys

from benchmark.cli import main

if hasattr(sys.stdout, "reconfigure"):  # a terminal that is not UTF-8 gets "?" for what it cannot show
    sys.stdout.reconfigure(errors="replace")

if __name__ == "__main__":  # worker processes import this module again
    sys.exit(main(sys.argv[1:]))
