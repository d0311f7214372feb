"""torchrun, and a note in the cell's folder of how each process died.

Usage: python -m benchmark.running.torchrun FOLDER ARGUMENTS.

torchrun itself only logs how processes died, and returns 1 in every case.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from benchmark.running.endings import Ending, How, memory_kills, note, noted, of_exit

GRACE = 20  # seconds for the other processes to end after one has failed, before torchrun kills them


def main(folder: Path, arguments: list[str]) -> int:
    """Run torchrun.

    Args:
        folder: the cell's.
        arguments: torchrun's.

    Returns:
        Exit code: 1 if a process failed.
    """
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(GRACE)
    kills = memory_kills()
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        known = noted(folder)
        for rank, failure in first(error.failures).items():
            if rank not in known:  # torchrun stops the others by SIGTERM, some before they can note it
                stopped = failure.exitcode == -signal.SIGTERM
                note(folder, rank, Ending(How.PREEMPTED) if stopped else of_exit(failure.exitcode, kills))
        return 1
    return 0


def first(failures: Mapping[int, ProcessFailure]) -> dict[int, ProcessFailure]:
    """Return the failures without those of processes that torchrun killed because they did not end in time."""
    start = min((failure.timestamp for failure in failures.values()), default=0)
    return {
        rank: failure for rank, failure in failures.items()
        if failure.exitcode != -signal.SIGKILL or failure.timestamp < start + GRACE / 2
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
