"""Local views of the trainable tensors, and the optimizer hooks that hand them to a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmark.errors import UserError
from methods.base import Method

# Wrappers that pass step() on unchanged, so the hooks of the optimizer inside fire at the right moment.
TRANSPARENT = frozenset({"accelerate.optimizer.AcceleratedOptimizer"})
DEEPSPEED = frozenset(
    {
        "DeepSpeedOptimizerWrapper",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer_Stage3",
        "BF16_Optimizer",
        "FP16_Optimizer",
        "FP16_UnfusedOptimizer",
    }
)


@dataclass(frozen=True)
class Shard:
    """This process's part of one trainable tensor, as 1-D views.

    Attributes:
        name: the tensor's name in the model.
        shape: of the whole tensor.
        numel: of the whole tensor; the local part may be shorter, even empty.
        weight: a live view, at least float32; writing to it changes the model.
        grad: a live view of the final gradient, or None outside of an optimizer step.
    """

    name: str
    shape: torch.Size
    numel: int
    weight: Tensor
    grad: Tensor | None
    source: Tensor

    @property
    def pretrained(self) -> Tensor:
        """The base checkpoint's values, on the weight's device and in its dtype."""
        return self.source.to(self.weight)


class Shards:
    """The tensors of one hook call; iterating reads the current views.

    Args:
        read: returns the shards, in the same order in every process.
        reduce: sums a float64 vector over all processes that hold parts; the default is one process (plain
            torch), or replicas that all hold everything (DDP).
    """

    def __init__(
        self, read: Callable[[], list[Shard]], reduce: Callable[[Tensor], Tensor] = lambda values: values
    ) -> None:
        self._read = read
        self._reduce = reduce

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._read())

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a 1-D float64 tensor over the processes; every process calls it, with the same length."""
        return self._reduce(values)

    def sums(self, function: Callable[[Shard], Tensor]) -> dict[str, list[float]]:
        """Sum some numbers of every tensor over its parts, all tensors in one reduction.

        Args:
            function: maps a shard to a 1-D float64 tensor, the same length for all.

        Returns:
            The summed numbers by tensor name.
        """
        shards = list(self)
        rows = torch.stack([function(shard) for shard in shards])
        totals = self.reduce_sum(rows.flatten()).view_as(rows).tolist()
        return {shard.name: total for shard, total in zip(shards, totals, strict=True)}


class Attachment:
    """A method hooked to an optimizer; `shards` are all its tensors, `remove` takes the hooks off."""

    def __init__(self, shards: Shards, method: Method, hooks: list[Any]) -> None:
        self.shards = shards
        self.method = method
        self._hooks = hooks

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Return rms_delta, restored_fraction and the method's own numbers; call it on every process."""
        return delta_summary(self.shards) | self.method.diagnostics()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def delta_summary(shards: Shards) -> dict[str, float]:
    """Measure how far the weights are from the base checkpoint.

    Returns:
        rms_delta: root mean square of w - w* over all trainable elements.
        restored_fraction: share of elements with w == w* exactly.
    """

    def count(shard: Shard) -> Tensor:
        delta = (shard.weight - shard.pretrained).double()
        return torch.stack([delta.square().sum(), (delta == 0).sum().double()])

    squares, restored = (sum(column) for column in zip(*shards.sums(count).values(), strict=True))
    size = sum(shard.numel for shard in shards)
    return {"rms_delta": (squares / size) ** 0.5, "restored_fraction": restored / size}


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Unwrap to the optimizer whose step changes the weights.

    Raises:
        UserError: a wrapper whose parameters are not the model's tensors, or one that we do not know.
    """
    while True:
        kind = type(optimizer)
        path = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__name__ in DEEPSPEED:
            raise UserError(
                f"Optimizer {path} shards the weights, which methods do not support yet. "
                "Train on one process or with DDP (engine=single)."
            )
        if not hasattr(optimizer, "optimizer"):
            break
        if path not in TRANSPARENT:
            raise UserError(
                f"Optimizer wrapper {path} is unknown, so a method might see stale weights or gradients. "
                f"Pass the inner torch optimizer, or one of: {', '.join(sorted(TRANSPARENT))}."
            )
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{path} is no torch.optim.Optimizer. Use one, for example torch.optim.AdamW.")
    return optimizer


def _check(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter], pretrained: Mapping[str, Tensor]
) -> None:
    """Refuse anything that would make a method miss or misread a tensor; all faults in one message."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    faults = []
    if len(names) < len(parameters):
        faults.append("two names share one tensor; name each trained tensor once")
    if unnamed := sum(id(parameter) not in names for parameter in held):
        faults.append(f"the optimizer trains {unnamed} tensor(s) that were not named")
    for name in sorted(set(names.values()) - {names.get(id(parameter)) for parameter in held}):
        faults.append(f"{name} is not in the optimizer; name trained tensors only")
    for name, parameter in parameters.items():
        if name not in pretrained:
            faults.append(f"{name} has no pretrained value; load it from the base checkpoint")
        elif pretrained[name].shape != parameter.shape:
            faults.append(
                f"{name} has shape {tuple(parameter.shape)}, in the base checkpoint "
                f"{tuple(pretrained[name].shape)}; use the model's own base, unsharded"
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            faults.append(f"{name} is {parameter.dtype}; train float32 weights, with bf16 autocast for speed")
        if type(parameter.data) is not Tensor or not parameter.is_contiguous():
            faults.append(f"{name} ({type(parameter.data).__name__}) has no flat view; use a plain tensor")
    if faults:
        raise UserError("Cannot attach the method: " + "; ".join(faults) + ".")


def attach(
    optimizer: Any,
    named_parameters: Mapping[str, Parameter],
    pretrained: Mapping[str, Tensor],
    method: Method,
) -> Attachment:
    """Hook a method around every step of an optimizer and start it.

    A trained tensor without a gradient (the projector in a batch without images) gets a gradient of zeros,
    as under ZeRO, so that Adam treats it the same in every engine.

    Args:
        optimizer: a torch optimizer, or accelerate's wrapper of one.
        named_parameters: every trained tensor by its name in the model.
        pretrained: w* by name, full shapes, from the base checkpoint, also when the model was resumed.
        method: not started yet; load its saved state after this call.

    Returns:
        The attachment.

    Raises:
        UserError: unsupported optimizer wrapper, or tensors that the method could not see rightly.
    """
    inner = innermost(optimizer)
    _check(inner, named_parameters, pretrained)
    names = {id(parameter): name for name, parameter in named_parameters.items()}
    sources = {}
    for name, parameter in named_parameters.items():
        source = pretrained[name].detach().reshape(-1)
        sources[name] = source.to(parameter) if method.uses_pretrained else source

    def read() -> list[Shard]:
        return [
            Shard(
                name=names[id(parameter)],
                shape=parameter.shape,
                numel=parameter.numel(),
                weight=parameter.detach().view(-1),
                grad=None if parameter.grad is None else parameter.grad.detach().view(-1),
                source=sources[names[id(parameter)]],
            )
            for group in inner.param_groups
            for parameter in group["params"]
        ]

    shards = Shards(read)

    @torch.no_grad()
    def before(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if any(callable(value) for value in (*args, *kwargs.values())):
            raise UserError("step(closure) computes gradients after the method saw them. Call step().")
        if getattr(optimizer, "grad_scale", None) is not None:
            raise UserError("The method would see scaled fp16 gradients. Train in bf16 or float32.")
        for parameter in named_parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif not parameter.grad.is_contiguous():
                parameter.grad = parameter.grad.contiguous()
        method.before_step(shards)

    @torch.no_grad()
    def after(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        method.after_step(shards)

    method.shards = shards
    with torch.no_grad():
        method.start(shards)
    hooks = [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]
    return Attachment(shards, method, hooks)
