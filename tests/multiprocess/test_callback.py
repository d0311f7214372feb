"""MethodCallback on two processes, under DDP, FSDP2 and ZeRO-2: the weights of one process, and an exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, distributed
from transformers import Trainer

from benchmark.training.attach_model import whole
from benchmark.training.callback import MethodCallback
from benchmark.training.engine import skip_compiling
from tests.benchmark.training.test_callback import BATCH, arguments, items, model, optimizer, plain_loop, weights
from tests.multiprocess.launch import launch

SAVING = {"save_strategy": "steps", "save_steps": 3}
HOW: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2}},
    "zero2": {
        "use_cpu": False,  # it would disable DeepSpeed
        "deepspeed": {
            "train_micro_batch_size_per_gpu": BATCH, "gradient_accumulation_steps": 1, "gradient_clipping": 0.3,
            "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True,
        },
    },
}


class Sharding(Trainer):
    """A Trainer that makes its optimizer itself: where it shards, it takes none."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = optimizer(self.model)
        return self.optimizer


def train(folder: Path, how: str, resumed: bool) -> dict[str, Tensor]:
    """Train in one of two processes; together they make a step of the whole batch without accumulation."""
    if how != "ddp":
        shard_without_gpus(how)
    base = weights(model()) if resumed else None
    settings = HOW[how] | ({} if resumed else SAVING) | {"gradient_accumulation_steps": 1}
    chosen = arguments(folder, lr_scheduler_type="constant", **settings)
    run = Sharding(model(), chosen, train_dataset=items(), callbacks=[MethodCallback("spider", pretrained=base)])
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resumed else None)
    return {name: whole(weight) for name, weight in run.model.named_parameters() if weight.requires_grad}


def shard_without_gpus(how: str) -> None:
    """Make accelerate work as on GPUs: without, it ignores its FSDP plugin, and counts one process under DeepSpeed."""
    made = Accelerator.__init__
    if how == "zero2":
        skip_compiling()

    def init(self: Accelerator, *args: Any, fsdp_plugin: Any = None, **settings: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **settings)
        rank = distributed.get_rank()
        place = {"num_processes": 2, "process_index": rank, "local_process_index": rank}
        if how == "fsdp2":
            place |= {"distributed_type": DistributedType.FSDP}
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin
        PartialState._shared_state |= place
        AcceleratorState._shared_state |= place

    Accelerator.__init__ = init  # type: ignore[method-assign]


@pytest.mark.parametrize("how", HOW)
def test_two_processes_train_as_one_and_resume(how, tmp_path):
    first, second = launch(train, 2, tmp_path, how, False)
    expected = plain_loop("spider")
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]) and (first[name] - value).abs().max() < 1e-6
    saved = sorted(path.name for path in (tmp_path / "checkpoint-3").glob("spiderbench_method_*.pt"))
    assert saved == ["spiderbench_method_0.pt", "spiderbench_method_1.pt"]
    for again in launch(train, 2, tmp_path, how, True):
        assert all(torch.equal(again[name], first[name]) for name in first)
