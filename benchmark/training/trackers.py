"""TensorBoard and Weights & Biases, through the Trainer's own callbacks (`report_to`)."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

NONE = "none"


def fault(tracker: str) -> str | None:
    """Return why `report_to=tracker` cannot work on this machine; None if it can."""
    if tracker == NONE or importlib.util.find_spec(tracker) is not None:
        return None
    return (
        f"report_to={tracker}: the package {tracker} is not installed. "
        f"Run {sys.executable} -m pip install {tracker}, or leave report_to out."
    )


def start(tracker: str, folder: Path) -> None:
    """Make the callbacks write below the cell's folder; they read their settings from the environment.

    Weights & Biases works offline unless WANDB_MODE says otherwise; `wandb sync` uploads such a run later.

    Args:
        tracker: none, tensorboard or wandb.
        folder: the cell's.
    """
    if tracker == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    elif tracker == "wandb":
        os.environ["WANDB_DIR"] = str(folder)
        for name, value in (("WANDB_MODE", "offline"), ("WANDB_PROJECT", "spiderbench"), ("WANDB_SILENT", "true")):
            os.environ.setdefault(name, value)


def finish(tracker: str) -> None:
    """End the run of Weights & Biases; otherwise the next cell of this process would continue it."""
    if tracker == "wandb":
        import wandb

        wandb.finish()
        wandb.teardown()  # otherwise a process reads WANDB_DIR only once
