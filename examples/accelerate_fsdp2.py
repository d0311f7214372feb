"""A method with Accelerate and FSDP2: torchrun --nproc-per-node 2 examples/accelerate_fsdp2.py

On GPUs accelerate's own plugin shards (`fsdp_version: 2`); on a CPU it does not, so this calls fully_shard itself.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from spiderbench import attach


def train(method: str, steps: int = 20) -> dict[str, Tensor]:
    """Train a small network on the CPU, sharded over the processes; return its weights."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 33), nn.GELU(), nn.Linear(33, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (accelerator.num_processes,)))
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6))
    attachment = attach(method, optimizer, model)  # after sharding; w* is what the model holds now
    for batch in torch.randn(steps, 16, 8, generator=torch.Generator().manual_seed(1)):
        part = batch[accelerator.process_index :: accelerator.num_processes]
        accelerator.backward((model(part) - part).square().mean())
        optimizer.step()  # the method acts before and after
        optimizer.zero_grad()
    accelerator.print(attachment.diagnostics())  # every process takes part
    return {name: weight.full_tensor().detach() for name, weight in model.named_parameters()}


if __name__ == "__main__":
    train("spider")
    torch.distributed.destroy_process_group()
