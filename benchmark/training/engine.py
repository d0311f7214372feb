"""The process group of a sharded training, and the DeepSpeed configuration of a zero engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from benchmark.core.errors import UserError
from benchmark.training.fragments import REFUSED

PATIENCE = timedelta(minutes=30)  # longest wait of a process for the others; saving a large model takes minutes
Result = TypeVar("Result")


def deepspeed_config(
    zero: Mapping[str, Any], *, micro_batch_size: int, accumulation: int, max_grad_norm: float, dtype: str
) -> dict[str, Any]:
    """Return the configuration that deepspeed.initialize and TrainingArguments(deepspeed=...) take.

    It has no "optimizer" section. The trainer passes its own torch optimizer, so that nothing is compiled.

    Args:
        zero: DeepSpeed's zero_optimization section, including the stage.
        micro_batch_size: samples per forward pass and process.
        accumulation: forward passes per optimizer step and process.
        max_grad_norm: largest norm of the gradient; 0 for no clipping.
        dtype: "float32", or "bfloat16" for bfloat16 weights with float32 master weights.

    Returns:
        A dictionary that can be written as JSON.

    Raises:
        UserError: the stage is not 1, 2 or 3, or methods cannot work with an option.
    """
    if zero.get("stage") not in (1, 2, 3):
        raise UserError(f"engine.zero_optimization.stage={zero.get('stage')!r} must be 1, 2 or 3.")
    if wrong := {name: REFUSED[name] for name in zero if name in REFUSED and zero[name]}:
        reasons = " ".join(wrong.values())
        raise UserError(f"Methods cannot train with engine.zero_optimization.{', '.join(wrong)}. {reasons}")
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": float(max_grad_norm),
        "bf16": {"enabled": dtype == "bfloat16"},
        # Gradients are summed in float32. Otherwise the number of micro-batches and processes would change the result.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": dict(zero),
        "zero_allow_untested_optimizer": True,
    }


def join(device: str) -> None:
    """Form the group of the processes that torchrun or DeepSpeed's launcher started; without one, a group of one.

    Args:
        device: "cuda" (the processes communicate by NCCL) or "cpu" (by gloo).
    """
    for name, alone in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, alone)
    if not distributed.is_initialized():
        store = distributed.HashStore() if os.environ["WORLD_SIZE"] == "1" else None
        distributed.init_process_group(
            "gloo" if device == "cpu" else "nccl", store=store, rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]), timeout=PATIENCE,
        )


def place() -> tuple[int, int]:
    """Return (number of this process, number of processes); (0, 1) without a group."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def meet() -> None:
    """Wait until every process of the group has called this."""
    if place()[1] > 1:
        distributed.barrier()


def in_turn(function: Callable[[], Result]) -> Result:
    """Call a function first in process 0 and then in the others, which find its changes to files."""
    rank, _ = place()
    result = function() if rank == 0 else None
    meet()
    return result if rank == 0 else function()  # type: ignore[return-value]  # rank 0 called the function above


def from_all(value: Result) -> list[Result]:
    """Return a value of each process, in their order. Every process must call it; values must be small."""
    processes = place()[1]
    if processes == 1:
        return [value]
    values: list[Any] = [None] * processes
    distributed.all_gather_object(values, value)
    return values


def any_process(*values: bool, device: torch.device) -> list[bool]:
    """Return for each value whether it is true in some process. Every process must call it."""
    flags = torch.tensor(values, dtype=torch.int32, device=device)
    if place()[1] > 1:
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def skip_compiling() -> None:
    """Stop DeepSpeed on a CPU from compiling an operation for inference; call it before initialize."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
