"""engine=fsdp2: PyTorch's `fully_shard` on a loaded model, and this process's rows of its tensors.

Every decoder block is cut, so that a process holds some rows of each of its tensors and gathers the whole block where a
pass needs it. What trains outside of the blocks is cut too. What neither trains nor belongs to a block (embedding,
output layer, vision tower) stays whole: every pass needs it from beginning to end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map

from benchmark.core.errors import UserError
from benchmark.models import LoadedModel
from benchmark.training.base_weights import BaseWeights


def shard(loaded: LoadedModel, names: Sequence[str], dtype: str) -> dict[str, Parameter]:
    """Cut a model that every process has loaded; the process group must exist.

    Args:
        loaded: the model; changed in place. The named tensors, and no others, require gradients.
        names: the trained tensors. Their rows are float32.
        dtype: "bfloat16" computes with rounded copies of them and still sums gradients in float32.

    Returns:
        Name -> trained parameter, a DTensor. It replaces the parameter that the model had.

    Raises:
        UserError: a tensor has no rows.
    """
    model = loaded.model
    for name in names:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.float()
    blocks = [model.get_submodule(prefix.removesuffix(".")) for prefix in loaded.block_prefixes]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0 and (id(parameter) in inside or parameter.requires_grad):
            raise UserError(f"engine=fsdp2 cuts tensors by rows, but {name} is a single number. Use engine=zero2.")
    mesh = init_device_mesh(next(model.parameters()).device.type, (distributed.get_world_size(),))
    half = torch.bfloat16 if dtype == "bfloat16" else None
    # Autocast casts what products read, as on the other engines.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    whole = {p for p in model.parameters() if not p.requires_grad and id(p) not in inside}
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    return {name: model.get_parameter(name) for name in names}


def rows(parameter: Tensor) -> Tensor:
    """Return the rows of a cut tensor that this process holds, as a live view."""
    return cast(DTensor, parameter.detach()).to_local()


def gathered(trained: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Return the whole float32 weights on the CPU of process 0, nothing elsewhere. Every process must call it.

    One tensor after another is gathered, so a GPU needs room for only one.
    """
    weights = {}
    for name, parameter in trained.items():
        whole = cast(DTensor, parameter.detach()).full_tensor()
        if distributed.get_rank() == 0:
            weights[name] = whole.cpu()
    return weights


def clip(parameters: Iterable[Parameter], largest: float) -> Tensor:
    """Scale the gradients down to a largest norm over all processes; return the norm that they had.

    Args:
        parameters: those without a gradient are left out.
        largest: infinity changes nothing.
    """
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def state_of(trained: Mapping[str, Parameter], optimizer: Any) -> dict[str, Any]:
    """Return this process's rows of the weights and of the optimizer's moments, which can be read as weights only.

    Args:
        trained: name -> trained tensor.
        optimizer: a torch optimizer of these tensors, or accelerate's wrapper of one.
    """
    weights = {name: rows(parameter) for name, parameter in trained.items()}
    return {"weights": weights, "optimizer": tree_map(_plain, optimizer.state_dict())}


@torch.no_grad()
def restore(trained: Mapping[str, Parameter], optimizer: Any, state: dict[str, Any]) -> None:
    """Put back what `state_of` returned in the same process of an equal run."""
    for name, parameter in trained.items():
        rows(parameter).copy_(state["weights"][name])
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {key: _like(held[index], value) for key, value in values.items()}
        for index, values in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict(state["optimizer"] | {"state": moments})


class BaseRows(BaseWeights):
    """w* in the place of the trained tensors' rows, for the loss of a forward pass that compares with the base model.

    Args:
        trained: name -> trained tensor, from `shard`.
        pretrained: name -> its base value, whole.
    """

    def __init__(self, trained: Mapping[str, Parameter], pretrained: Mapping[str, Tensor]) -> None:
        super().__init__(trained, pretrained)
        self._rows = {name: _share(pretrained[name].detach(), parameter) for name, parameter in trained.items()}

    @contextlib.contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Compute as the base model inside the block. Nothing inside may need gradients.

        Args:
            model: the model that `shard` has cut.
        """
        live = {name: rows(parameter) for name, parameter in self._trained.items()}
        kept = {name: part.clone() for name, part in live.items()}
        with torch.no_grad():
            try:
                self._fill(model, live, self._rows)
                yield
            finally:
                self._fill(model, live, kept)

    @staticmethod
    def _fill(model: FSDPModule, live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        model.reshard()  # what trains outside of the blocks stays gathered from one pass to the next
        for name, part in live.items():
            part.copy_(values[name])


def _share(whole: Tensor, parameter: Parameter) -> Tensor:
    """Return this process's rows of a whole tensor, as `fully_shard` cuts it."""
    mesh = cast(DTensor, parameter).device_mesh
    pieces = whole.chunk(mesh.size())
    rank = mesh.get_local_rank()
    part = pieces[rank] if rank < len(pieces) else whole[:0]
    return part.to(parameter.device, torch.float32, copy=True)


def _plain(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _like(parameter: DTensor, value: Any) -> Any:
    """Return a moment's rows as a tensor that is cut like its parameter; step counts stay as they are."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return DTensor.from_local(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )
