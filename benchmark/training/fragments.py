"""Where an optimizer keeps the weights that its step changes: whole tensors, or this process's parts of them.

Plain torch and DDP step the model's own tensors. FSDP2 steps them too, but of each tensor a process holds only some
rows. DeepSpeed's ZeRO steps flat float32 buffers that hold this process's parts of many tensors, one after another, and
then copies them to the model's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmark.core.errors import UserError


@dataclass(frozen=True)
class Fragment:
    """This process's part of one tensor: `length` elements (perhaps 0) of `buffer`, from `start`.

    Attributes:
        parameter: the model's tensor.
        buffer: the tensor that the optimizer steps; `buffer.grad` holds the gradients at the same positions.
        start: first element within the buffer.
        length: number of elements.
        offset: index of the first element within the flattened tensor.
    """

    parameter: Parameter
    buffer: Tensor
    start: int
    length: int
    offset: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole tensor; under ZeRO-3 the model's parameter itself no longer has it."""
        return torch.Size(getattr(self.parameter, "ds_shape", self.parameter.shape))

    def view(self, buffer: Tensor) -> Tensor:
        """Return the fragment of the buffer or of its gradient, as a 1-D view."""
        return local(buffer.detach()).view(-1).narrow(0, self.start, self.length)


@dataclass(frozen=True)
class Layout:
    """What an optimizer steps.

    Attributes:
        engine: name for messages and saved states.
        optimizer: the innermost optimizer; the hooks of its step run at the right moment in every engine.
        fragments: one of each trained tensor, in the same order in every process.
        group: the processes that hold the other fragments; None if this process holds everything.
    """

    engine: str
    optimizer: torch.optim.Optimizer
    fragments: list[Fragment]
    group: Any = None


def find_layout(optimizer: Any) -> Layout:
    """Unwrap an optimizer and find what it steps.

    Args:
        optimizer: a torch optimizer, DeepSpeed's optimizer of ZeRO stage 1, 2 or 3, or accelerate's wrapper of one.

    Raises:
        UserError: another object, with which a method might see outdated weights or gradients, or settings of
            DeepSpeed that methods cannot work with.
    """
    while class_path(optimizer) in TRANSPARENT:
        optimizer = optimizer.optimizer
    path = class_path(optimizer)
    if path in ZERO:
        engine = ZERO[path]
        if wrong := [fix for name, fix in REFUSED.items() if getattr(optimizer, name, False)]:
            raise UserError(f"Methods cannot train with these settings of DeepSpeed: {' '.join(wrong)}")
        fragments = list(engine.fragments(optimizer))
        return Layout(engine.name, optimizer.optimizer, fragments, optimizer.dp_process_group)
    if hasattr(optimizer, "optimizer"):
        raise UserError(
            f"Optimizer wrapper {path} is unknown, so a method might see stale weights or gradients. Train with a "
            "torch optimizer, FSDP2, or DeepSpeed ZeRO stage 1, 2 or 3 (engine=zero1, zero2 or zero3)."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{path} is not a torch.optim.Optimizer. Use one, for example torch.optim.AdamW.")
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(class_path(parameter) in DTENSOR for parameter in held):
        return _by_rows(optimizer, held)
    fragments = [Fragment(parameter, parameter, 0, parameter.numel(), 0) for parameter in held]
    return Layout("plain torch", optimizer, fragments)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this process holds; other tensors are whole."""
    return tensor.to_local() if class_path(tensor) in DTENSOR else tensor  # type: ignore[attr-defined]  # of DTensor


def _by_rows(optimizer: torch.optim.Optimizer, held: list[Any]) -> Layout:
    """FSDP2 (`fully_shard`): the rows of every tensor are cut into one piece per process; HSDP repeats the pieces.

    Raises:
        UserError: a tensor is whole, or cut in another way.
    """
    mesh = next(parameter for parameter in held if class_path(parameter) in DTENSOR).device_mesh
    for parameter in held:
        cut = class_path(parameter) in DTENSOR and parameter.device_mesh == mesh and [*map(str, parameter.placements)]
        if not cut or cut[-1] != ROWS or set(cut[:-1]) - {REPLICA}:
            raise UserError(
                f"A trained tensor of shape {tuple(parameter.shape)} is not cut by rows over the same processes as the "
                "others. Apply fully_shard to the whole model, without tensor parallelism, before making the optimizer."
            )
    last = mesh.ndim - 1
    rank, processes = mesh.get_local_rank(last), mesh.size(last)
    fragments = []
    for parameter in held:
        rows = parameter.shape[0]
        first = min(rank * -(-rows // processes), rows)
        width = parameter.numel() // rows if rows else 0
        fragments.append(Fragment(parameter, parameter, 0, local(parameter.detach()).numel(), first * width))
    # The other dimension of HSDP's mesh holds copies: a sum over it would count every element twice.
    return Layout("FSDP2", optimizer, fragments, mesh.get_group(last))


def class_path(thing: Any) -> str:
    """Return the module and name of an object's class."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _joined(groups: list[list[Parameter]], buffers: list[Tensor]) -> Iterator[Fragment]:
    """ZeRO-1 and 2: the tensors of a parameter group are joined, and cut into one piece per process."""
    for group, buffer in zip(groups, buffers, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed sets it
            if mapping is None:  # this process has no part of it
                yield Fragment(parameter, buffer, 0, 0, 0)
            else:
                place = mapping.hp_fragment_address
                yield Fragment(parameter, buffer, place.start, place.numel, mapping.lp_fragment_address.start)


def _cut(optimizer: Any) -> Iterator[Fragment]:
    """ZeRO-3: every tensor is cut into one piece per process; the pieces of a sub-group are joined."""
    rank = torch.distributed.get_rank(optimizer.dp_process_group)
    for group, buffer in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        for parameter in group:
            _, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = min(rank * size, parameter.ds_numel)
            # The buffer beyond the end of the tensor is never initialised.
            yield Fragment(parameter, buffer, start, min(size, parameter.ds_numel - offset), offset)


@dataclass(frozen=True)
class Zero:
    """A DeepSpeed optimizer: its name, and a function that finds its fragments."""

    name: str
    fragments: Callable[[Any], Iterator[Fragment]]


ZERO = {
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer": Zero(
        "ZeRO-1 or 2", lambda zero: _joined(zero.bit16_groups, zero.single_partition_of_fp32_groups)
    ),
    "deepspeed.runtime.bf16_optimizer.BF16_Optimizer": Zero(
        "ZeRO-1 in bf16", lambda zero: _joined(zero.bf16_groups, zero.fp32_groups_flat_partition)
    ),
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3": Zero("ZeRO-3", _cut),
}
DTENSOR = frozenset({"torch.distributed.tensor.DTensor", "torch.distributed.tensor._api.DTensor"})
ROWS, REPLICA = "S(0)", "R"  # how a DTensor's placements print: cut along the first dimension, or repeated
# Wrappers whose step() only calls the inner one.
TRANSPARENT = frozenset(
    {"accelerate.optimizer.AcceleratedOptimizer", "accelerate.utils.deepspeed.DeepSpeedOptimizerWrapper"}
)
# Attribute of DeepSpeed's optimizers that must not be set -> the fix.
REFUSED = {
    "round_robin_gradients": "Switch round_robin_gradients off: DeepSpeed then tells wrongly which weights are where.",
    "cpu_offload": "Remove offload_optimizer: methods work on the device that has the gradients.",
    "offload_optimizer": "Remove offload_optimizer: methods work on the device that has the gradients.",
    "offload_param": "Remove offload_param: methods work on the device that has the gradients.",
    "zenflow": "Remove zenflow: it changes weights between the steps.",
    "low_precision_master_weights_and_grads": "Keep the master weights and gradients in float32.",
    "torch_autocast_gradscaler": "Train in bf16 or float32: in fp16 a method would see scaled gradients.",
}
