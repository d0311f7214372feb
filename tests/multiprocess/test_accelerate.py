"""Accelerate with FSDP2 on two processes: SPIDER gives the weights of the float64 reference in one."""

from __future__ import annotations

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from examples.accelerate_fsdp2 import train
from spiderbench import attach
from tests.examples import loop
from tests.multiprocess.launch import launch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 33), nn.GELU(), nn.Linear(33, 8))


def batches() -> Tensor:
    return torch.randn(loop.STEPS, 16, 8, generator=torch.Generator().manual_seed(1))


def expected() -> dict[str, Tensor]:
    return loop.spider(
        network(), batches().double(), lambda net, batch: (net(batch) - batch).square().mean(),
        rates=lambda step: 1e-3, decay=0.01,
    )


def by_accelerates_plugin() -> dict[str, Tensor]:
    """Shard by accelerate's own plugin, which looks at the plugin only where there are GPUs."""
    accelerator = Accelerator(cpu=True)
    AcceleratorState._shared_state |= {
        "distributed_type": DistributedType.FSDP,
        "fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False),
    }
    assert accelerator.is_fsdp2
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6))
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    attach("spider", optimizer, model)
    for batch in batches():
        part = batch[accelerator.process_index :: accelerator.num_processes]
        accelerator.backward((model(part) - part).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.full_tensor().detach() for name, weight in model.named_parameters()}


def test_the_example_gives_the_weights_of_the_reference():
    for weights in launch(train, 2, "spider"):
        loop.agrees(weights, expected(), loop.weights_of(network()))


def test_so_does_accelerates_own_plugin():
    for weights in launch(by_accelerates_plugin, 2):
        loop.agrees(weights, expected(), loop.weights_of(network()))
