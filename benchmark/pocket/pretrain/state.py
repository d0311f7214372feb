"""Learning rate schedule, checkpoint and low-precision replica of all pretraining stages."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark.core.files import write_atomic
from benchmark.pocket.pretrain import group


class Schedule:
    """Linear warm-up, cosine decay to a twentieth of the peak over `horizon`, and linear cool-down at the end.

    Args:
        peak: learning rate.
        steps: of the whole stage.
        warmup: number of steps.
        horizon: length of the cosine, by default `steps`; a stage may end before its cosine does.
        cooldown: number of last steps over which the rate also falls linearly to a twentieth.
    """

    def __init__(self, peak: float, steps: int, warmup: int, horizon: int | None = None, cooldown: int = 0) -> None:
        self.peak, self.steps, self.warmup = peak, steps, warmup
        self.horizon, self.cooldown = horizon or steps, cooldown

    def at(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.horizon - self.warmup)
        rate = self.peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
        left = self.steps - step
        return rate * (0.05 + 0.95 * left / self.cooldown) if left < self.cooldown else rate

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the step's learning rate; a group's 'scale' multiplies it."""
        for settings in optimizer.param_groups:
            settings["lr"] = self.at(step) * settings.get("scale", 1.0)


def save(out: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the stage's checkpoint atomically, if this is the first process."""
    if not group.is_first():
        return
    buffer = io.BytesIO()
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"parts": state, "optimizer": optimizer.state_dict(), "step": step}, buffer)
    write_atomic(out / "checkpoint.pt", buffer.getvalue())


def resume(out: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Load the stage's checkpoint, if there is one, and return the next step (0 without a checkpoint)."""
    path = out / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


class Replica:
    """A copy that runs forward and backward for fp32 master weights; at float32 the masters themselves do.

    On CPUs with bfloat16 instructions, matrix products in bfloat16 are two to four times as fast, on others up to forty
    times as slow. The optimizer updates the fp32 masters, so rounding loses no update.

    Args:
        parts: name -> module with fp32 weights.
        dtype: of the copy.
    """

    def __init__(self, parts: dict[str, nn.Module], dtype: torch.dtype) -> None:
        same = dtype == torch.float32
        self.parts = parts if same else {name: copy.deepcopy(part).to(dtype) for name, part in parts.items()}
        self._pairs = [] if same else [
            (master, low)
            for name, part in parts.items()
            for master, low in zip(part.parameters(), self.parts[name].parameters(), strict=True)
            if master.requires_grad
        ]

    def gradients_to_masters(self) -> None:
        """Move the copies' gradients to the masters, in fp32."""
        for master, low in self._pairs:
            master.grad = None if low.grad is None else low.grad.float()
            low.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the rounded masters into the replica after an optimizer step."""
        for master, low in self._pairs:
            low.copy_(master)


def update(
    loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, low: Replica | None = None
) -> None:
    """Take an optimizer step on the gradients of all processes' losses, clipped to a norm of 1.

    Args:
        loss: this process's part.
        parameters: the optimizer's.
        optimizer: of the masters.
        low: computed the loss, unless the masters did.
    """
    loss.backward()
    if low is not None:
        low.gradients_to_masters()
    group.add_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if low is not None:
        low.refresh()
