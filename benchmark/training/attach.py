"""Hook a method around the steps of an optimizer, with views of the trained tensors.

It works in the same way in plain torch, DDP, FSDP2 and ZeRO-1, 2 and 3. `benchmark.training.fragments` knows where
each of them keeps the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmark.core.errors import UserError
from benchmark.training.fragments import Fragment, Layout, find_layout, local
from methods.base import Method
from methods.shards import LIVE, Shard, Shards
from methods.state import differences, held, unsaved


class Attachment:
    """A method hooked to an optimizer. `shards` are all its tensors; `remove` removes the hooks."""

    def __init__(self, shards: Shards, method: Method, hooks: list[Any], place: dict[str, Any]) -> None:
        self.shards = shards
        self.method = method
        self._hooks = hooks
        self._place = place
        self._held = held(method, LIVE)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Return rms_delta, restored_fraction and the method's own numbers. Every process must call it."""
        return delta_summary(self.shards) | self.method.diagnostics()

    def unsaved(self) -> str | None:
        """Return why the method's state cannot be saved for an exact resume; None if it can."""
        return unsaved(self.method, self._held, LIVE)

    def state_dict(self) -> dict[str, Any]:
        """Return this process's state of the method, and the part of the weights that it belongs to.

        Raises:
            UserError: the method holds state that would not be saved.
        """
        if fault := self.unsaved():
            raise UserError(fault)
        return {"place": self._place, "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned in the same process of an equal run.

        Raises:
            UserError: the engine, the number of processes, the process or the tensors differ, or the method does not
                restore its saved state.
        """
        saved, here = state["place"], self._place
        if saved != here:
            parts = [
                f"{name} {saved[name]} (here {here[name]})"
                for name in ("engine", "processes", "process") if saved[name] != here[name]
            ]
            raise UserError(
                f"The training state was saved with {', '.join(parts) or 'other tensors'}. It is cut like the weights: "
                "resume with the engine and number of processes that saved it, or delete the checkpoint folder."
            )
        cls = type(self.method).__name__
        stale = (
            "If the method's code has changed since, undo that; else correct load_state_dict: the saved state is "
            "whole. To train again from the start, delete the checkpoint folder."
        )
        try:
            self.method.load_state_dict(state["method"])
        except UserError:
            raise
        except Exception as error:  # a user's method can fail in any way
            keys = ", ".join(map(repr, [*state["method"]][:5])) or "nothing"
            raise UserError(
                f"{cls}.load_state_dict failed on the saved state, which has {keys}: {type(error).__name__}: {error}."
                f" {stale}"
            ) from error
        if other := differences(state["method"], self.method):
            raise UserError(
                f"{cls} cannot resume: after load_state_dict its state_dict differs from what was saved in "
                f"{', '.join(map(repr, other[:5]))} ({len(other)} of {len(state['method'])} saved). load_state_dict "
                f"must put back all that state_dict returns. {stale}"
            )

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def delta_summary(shards: Shards) -> dict[str, float]:
    """Measure how far the weights are from the base checkpoint.

    Returns:
        rms_delta: root mean square of w - w* over all trainable elements.
        restored_fraction: share of elements that are exactly w*.
    """

    def count(shard: Shard) -> Tensor:
        delta = (shard.weight - shard.pretrained).double()
        return torch.stack([delta.square().sum(), (delta == 0).sum().double()])

    squares, restored = (sum(column) for column in zip(*shards.sums(count).values(), strict=True))
    size = sum(shard.numel for shard in shards)
    return {"rms_delta": (squares / size) ** 0.5, "restored_fraction": restored / size}


def attach(
    optimizer: Any,
    named_parameters: Mapping[str, Parameter],
    pretrained: Mapping[str, Tensor],
    method: Method,
    unseen: Collection[str] = (),
) -> Attachment:
    """Hook a method around every step of an optimizer and start it.

    A trained tensor without a gradient (the projector, in a batch without images) gets a gradient of zeros, as under
    ZeRO. Adam then treats it in the same way in every engine.

    Args:
        optimizer: a torch optimizer, DeepSpeed's optimizer of ZeRO stage 1, 2 or 3, or accelerate's wrapper of one.
        named_parameters: name in the model -> trained tensor.
        pretrained: name -> w* from the base checkpoint, in its full shape, also when the model was resumed.
        method: a method that has not been started; load its saved state through the returned attachment.
        unseen: names of trained tensors that are no weights of the base; the method does not see them.

    Returns:
        The attachment.

    Raises:
        UserError: the optimizer wrapper is not supported, or the method would misread tensors.
    """
    layout = find_layout(optimizer)
    names = {id(parameter): name for name, parameter in named_parameters.items()}
    _check(layout, names, named_parameters, pretrained)
    sources = {}
    for fragment in layout.fragments:
        name = names[id(fragment.parameter)]
        whole = pretrained[name].detach().reshape(-1)
        whole = _compact(whole) if method.uses_pretrained else whole
        part = whole.narrow(0, fragment.offset, fragment.length)
        if method.uses_pretrained:
            # Only a copy frees the whole tensor.
            part = (part.clone() if part.numel() < whole.numel() else part).to(fragment.buffer.device)
        sources[name] = part

    def read(fragments: Iterable[Fragment], with_grad: bool) -> list[Shard]:
        return [
            Shard(
                name=names[id(fragment.parameter)],
                shape=fragment.shape,
                numel=fragment.shape.numel(),
                weight=fragment.view(fragment.buffer),
                # `before` gave every buffer a gradient.
                grad=fragment.view(fragment.buffer.grad) if with_grad else None,  # type: ignore[arg-type]
                source=sources[names[id(fragment.parameter)]],
                offset=fragment.offset,
            )
            for fragment in fragments
        ]

    def reduce(values: Tensor) -> Tensor:
        return values if layout.group is None else _all_reduce(values, layout.group)

    place = (0, 1) if layout.group is None else (
        torch.distributed.get_rank(layout.group), torch.distributed.get_world_size(layout.group)
    )

    seen = [fragment for fragment in layout.fragments if names[id(fragment.parameter)] not in unseen]

    def live(optimizer: torch.optim.Optimizer) -> Shards:
        """Return the tensors that this call of step changes: all, or under ZeRO those of one group or sub-group."""
        held = {id(buffer) for group in optimizer.param_groups for buffer in group["params"]}
        fragments = [fragment for fragment in seen if id(fragment.buffer) in held]
        return Shards(lambda: read(fragments, with_grad=True), reduce, place)

    def sees(optimizer: torch.optim.Optimizer) -> bool:
        """Return whether this call of step changes a tensor that the method sees; the same in every process."""
        return not unseen or any(True for _ in live(optimizer))

    inner, own_step = layout.optimizer, False

    def extra_step() -> None:
        nonlocal own_step
        own_step = True
        try:
            inner.step()
        finally:
            own_step = False

    @torch.no_grad()
    def before(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if own_step:
            return
        if any(callable(value) for value in (*args, *kwargs.values())):
            raise UserError("step(closure) computes gradients after the method saw them. Call step().")
        if getattr(optimizer, "grad_scale", None) is not None:
            raise UserError("The method would see scaled fp16 gradients. Train in bf16 or float32.")
        for buffer in [buffer for group in optimizer.param_groups for buffer in group["params"]]:
            if buffer.grad is None:
                buffer.grad = torch.zeros_like(buffer)
            elif not buffer.grad.is_contiguous():
                buffer.grad = buffer.grad.contiguous()
        if sees(optimizer):
            method.before_step(live(optimizer))

    @torch.no_grad()
    def after(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if not own_step and sees(optimizer):
            method.after_step(live(optimizer))

    method.extra_step = extra_step if layout.group is None else None
    method.shards = Shards(lambda: read(seen, with_grad=False), reduce, place)
    with torch.no_grad():
        method.start(method.shards)
    hooks = [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]
    everything = Shards(lambda: read(layout.fragments, with_grad=False), reduce, place)
    return Attachment(everything, method, hooks, _place(layout, names, *place))


def _check(
    layout: Layout, names: dict[int, str], parameters: Mapping[str, Parameter], pretrained: Mapping[str, Tensor]
) -> None:
    """Refuse everything that would make a method miss or misread a tensor, with all faults in one message."""
    found = {id(fragment.parameter): fragment for fragment in layout.fragments}
    faults = []
    if len(names) < len(parameters):
        faults.append("two names share one tensor; name each trained tensor once")
    if unnamed := len(found.keys() - names.keys()):
        faults.append(f"the optimizer trains {unnamed} tensor(s) that were not named")
    for name, parameter in parameters.items():
        if id(parameter) not in found:
            faults.append(f"{name} is not in the optimizer; name trained tensors only")
            continue
        fragment = found[id(parameter)]
        if name not in pretrained:
            faults.append(f"{name} has no pretrained value; load it from the base checkpoint")
        elif pretrained[name].shape != fragment.shape:
            faults.append(
                f"{name} has shape {tuple(fragment.shape)}, in the base checkpoint {tuple(pretrained[name].shape)}; "
                "use the model's own base, unsharded"
            )
        elif pretrained[name].data_ptr() == local(fragment.buffer.detach()).data_ptr() != 0:
            faults.append(f"{name} would train the pretrained value itself; give a copy")
        if fragment.buffer.dtype not in (torch.float32, torch.float64):
            faults.append(f"{name} is {fragment.buffer.dtype}; train float32 weights, with bf16 autocast for speed")
        if type(local(fragment.buffer.data)) is not Tensor or not fragment.buffer.is_contiguous():
            faults.append(f"{name} ({type(fragment.buffer.data).__name__}) has no flat view; use a plain tensor")
    if faults:
        raise UserError("Cannot attach the method: " + "; ".join(faults) + ".")


def _compact(values: Tensor) -> Tensor:
    """Return float32 values as bfloat16 or float16 if that is exact: the checkpoint was stored in that dtype."""
    if values.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            small = values.to(dtype)
            if torch.equal(small.float(), values):
                return small
    return values


def _all_reduce(values: Tensor, group: Any) -> Tensor:
    total = values.clone()
    try:
        torch.distributed.all_reduce(total, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"Process {torch.distributed.get_rank(group)} waited too long for the others: one of them stopped or "
            "hangs. The first error in their output says why; the same command resumes from the last saved state."
        ) from error
    return total


def _place(layout: Layout, names: dict[int, str], process: int, processes: int) -> dict[str, Any]:
    """Return what must be equal for a saved state to fit: the engine, this process and its fragments."""
    fragments = [(names[id(part.parameter)], *part.shape, part.offset, part.length) for part in layout.fragments]
    return {
        "engine": layout.engine,
        "processes": processes,
        "process": process,
        "fragments": hashlib.sha256(repr(fragments).encode()).hexdigest(),
    }
