"""Following a training in TensorBoard or Weights & Biases, through the Trainer's own callbacks (`report_to`)."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

NONE = "none"


def fault(tracker: str) -> str | None:
    """Return what is wrong with `report_to=tracker` on this machine, or None."""
    if tracker == NONE or importlib.util.find_spec(tracker) is not None:
        return None
    return (
        f"report_to={tracker}: the package {tracker} is not installed here. "
        f"{sys.executable} -m pip install {tracker}, or leave report_to out."
    )


def start(tracker: str, folder: Path) -> None:
    """Say where the callbacks, which read the environment, write: below the cell's folder, and nothing leaves it.

    Weights & Biases works offline unless WANDB_MODE says otherwise; `wandb sync` sends such a run later.

    Args:
        tracker: none, tensorboard or wandb.
        folder: of the cell.
    """
    if tracker == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    elif tracker == "wandb":
        os.environ["WANDB_DIR"] = str(folder)
        for name, value in (("WANDB_MODE", "offline"), ("WANDB_PROJECT", "spiderbench"), ("WANDB_SILENT", "true")):
            os.environ.setdefault(name, value)


def finish(tracker: str) -> None:
    """End the run of Weights & Biases: the next cell of this process would go on in it, or write where it did."""
    if tracker == "wandb":
        import wandb

        wandb.finish()
        wandb.teardown()  # forgets WANDB_DIR, which is otherwise read once in the life of a process
