"""From the engine of a cell to DeepSpeed's configuration, and what DeepSpeed needs on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.errors import UserError
from benchmark.fragments import REFUSED


def deepspeed_config(
    zero: Mapping[str, Any], *, micro_batch_size: int, accumulation: int, max_grad_norm: float, dtype: str
) -> dict[str, Any]:
    """Return the configuration that deepspeed.initialize and TrainingArguments(deepspeed=...) take.

    It has no "optimizer" section: the trainer gives its own torch optimizer, so that nothing is compiled.

    Args:
        zero: DeepSpeed's zero_optimization section, with its stage.
        micro_batch_size: samples per forward pass and process.
        accumulation: forward passes per optimizer step and process.
        max_grad_norm: 0 clips nothing.
        dtype: "float32", or "bfloat16" for bfloat16 weights with float32 master weights.

    Returns:
        A dictionary that can be written as JSON.

    Raises:
        UserError: no stage of 1 to 3, or an option that methods cannot work with.
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
        # Gradients are summed over micro-batches and processes in float32, or their number would change the result.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": dict(zero),
        "zero_allow_untested_optimizer": True,
    }


def skip_compiling() -> None:
    """Keep DeepSpeed on a CPU from compiling an operation that only its inference uses; call it before initialize."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
