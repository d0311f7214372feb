"""FSDP2 gives every method the weights of one plain process, with uneven rows, empty pieces, copies (HSDP), resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from benchmark.core.errors import UserError
from benchmark.training.attach import Attachment, attach
from methods.base import Method
from methods.registry import build
from methods.shards import Shards
from tests.methods.toy import sample_gradients
from tests.multiprocess.launch import launch
from tests.multiprocess.parity import FEW, STRENGTHS, TRAINED, Result

STEPS = 4


class Net(nn.Module):
    """Two decoder-like layers with the names that methods look for, and a projector."""

    def __init__(self) -> None:
        super().__init__()
        self.mm_projector = nn.Linear(6, 7)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mm_projector(x).tanh()
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(7, 7, bias=False) for name in "qkvo"})
        self.mlp = nn.ModuleDict({
            "gate_proj": nn.Linear(7, 5, bias=False), "up_proj": nn.Linear(7, 5, bias=False),
            "down_proj": nn.Linear(5, 7, bias=False),
        })
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(7, bias=False), nn.LayerNorm(7, bias=False)
        self.gain = nn.Parameter(torch.ones(1))  # fewer rows than processes

    def forward(self, x: Tensor) -> Tensor:
        h = self.input_layernorm(x)
        x = x + self.gain * self.self_attn["o_proj"](
            (self.self_attn["q_proj"](h) * self.self_attn["k_proj"](h)).tanh() + self.self_attn["v_proj"](h)
        )
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](self.mlp["gate_proj"](h).sigmoid() * self.mlp["up_proj"](h))


@dataclasses.dataclass
class Training:
    """A net with a method, whole or cut by fully_shard; every process trains on the same batch."""

    net: Net
    optimizer: torch.optim.Optimizer
    attachment: Attachment

    @classmethod
    def start(cls, method: Method, mesh: tuple[int, ...] | None, made: dict[str, Any] | None = None) -> Training:
        """Make net and optimizer; with `made`, go on from what `saved` returned."""
        torch.manual_seed(0)
        net = Net()
        base = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        if mesh:
            device_mesh = init_device_mesh("cpu", mesh, mesh_dim_names=("copies", "parts")[-len(mesh):])
            for layer in net.layers:
                fully_shard(layer, mesh=device_mesh)
            fully_shard(net, mesh=device_mesh)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.01, eps=1e-4)
        if made:
            with torch.no_grad():
                for parameter, value in zip(net.parameters(), made["weights"], strict=True):
                    local(parameter).copy_(value)
            optimizer.load_state_dict(made["optimizer"])
        if hasattr(method, "measure"):
            method.measure(sample_gradients(base))
        attachment = attach(optimizer, dict(net.named_parameters()), base, method)
        if made:
            attachment.load_state_dict(made["method"])
        return cls(net, optimizer, attachment)

    def step(self, number: int) -> None:
        torch.manual_seed(100 + number)
        x = torch.randn(12, 6)
        self.net(x).square().mean().backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 0.05)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def saved(self) -> dict[str, Any]:
        return {
            "weights": [local(parameter).detach().clone() for parameter in self.net.parameters()],
            "optimizer": self.optimizer.state_dict(), "method": self.attachment.state_dict(),
        }

    def weights(self) -> dict[str, Tensor]:
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
            for name, p in self.net.named_parameters()
        }


def local(parameter: Any) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def method_of(name: str) -> Method:
    return build(name, {"strength": STRENGTHS[name]} if name in STRENGTHS else {}, 0)


def trained(mesh: tuple[int, ...] | None, methods: tuple[str, ...]) -> dict[str, Any]:
    """Train every method; return weights, diagnostics and, if it refuses, its message."""
    made: dict[str, Any] = {}
    for name in methods:
        try:
            training = Training.start(method_of(name), mesh)
            for number in range(STEPS):
                training.step(number)
        except UserError as error:
            made[name] = str(error)
            continue
        made[name] = Result(training.weights(), {}, training.attachment.diagnostics(), [], [])
    return made


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return launch(trained, 1, None, TRAINED)[0]


@pytest.mark.parametrize(("processes", "mesh"), [(2, (2,)), (3, (3,)), (4, (2, 2))])
def test_weights_are_those_of_one_plain_process(processes, mesh, expected):
    methods = TRAINED if processes == 2 else FEW  # of each class one, as in test_parity.py
    found = launch(trained, processes, mesh, methods)
    refused = {name for name, result in found[0].items() if isinstance(result, str)}
    assert refused == {"l2_reg_two_step", "grafting_two_step"} & set(methods)
    for name in set(methods) - refused:
        one = expected[name]
        for rank in found:
            for tensor, value in one.weights.items():
                difference = (rank[name].weights[tensor] - value).abs().max().item()
                assert difference <= 2e-7, (name, tensor, difference)
            assert rank[name].diagnostics == pytest.approx(one.diagnostics, rel=1e-4, abs=1e-6), name


def resumed(mesh: tuple[int, ...], methods: tuple[str, ...]) -> dict[str, bool]:
    """Train in one go, and again stopped in the middle; return whether both give the same bits."""
    same = {}
    for name in methods:
        whole = Training.start(method_of(name), mesh)
        for number in range(STEPS):
            whole.step(number)
        first = Training.start(method_of(name), mesh)
        for number in range(2):
            first.step(number)
        second = Training.start(method_of(name), mesh, first.saved())
        for number in range(2, STEPS):
            second.step(number)
        ours, theirs = whole.weights(), second.weights()
        same[name] = all(torch.equal(value, theirs[tensor]) for tensor, value in ours.items())
    return same


def test_a_stopped_training_goes_on_to_the_same_bits():
    methods = tuple(name for name in FEW if not name.endswith("two_step"))
    for rank in launch(resumed, 3, (3,), methods):
        assert all(rank.values()), [name for name, same in rank.items() if not same]


class Watch(Method):
    """Counts what a method sees."""

    uses_pretrained = True

    def start(self, shards: Shards) -> None:
        self.totals = shards.sums(lambda shard: torch.tensor([len(shard.weight), 1.0], dtype=torch.float64))
        self.places = {shard.name: (shard.offset, len(shard.weight)) for shard in shards}
        self.right = all(torch.equal(shard.weight, shard.pretrained) for shard in shards)


def seen(mesh: tuple[int, ...]) -> Any:
    method = Watch(None, 0)
    training = Training.start(method, mesh)
    sizes = {name: parameter.numel() for name, parameter in training.net.named_parameters()}
    return method.places, {name: total[0] for name, total in method.totals.items()}, sizes, method.right


@pytest.mark.parametrize(("processes", "mesh"), [(3, (3,)), (4, (2, 2))])
def test_every_element_counts_once_and_small_tensors_have_empty_pieces(processes, mesh):
    ranks = launch(seen, processes, mesh)
    _, totals, sizes, _ = ranks[0]
    assert totals == sizes and all(rank[1] == totals and rank[3] for rank in ranks)
    parts = [rank[0] for rank in ranks[: mesh[-1]]]
    for name, size in sizes.items():
        spans = [part[name] for part in parts]
        assert sorted(i for start, length in spans for i in range(start, start + length)) == list(range(size)), name
    assert any(part["layers.0.gain"][1] == 0 for part in parts)


def refused_mixture() -> str:
    torch.manual_seed(0)
    net = Net()
    fully_shard(net.layers[0], mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters())
    base = {name: torch.zeros(parameter.shape) for name, parameter in net.named_parameters()}
    try:
        attach(optimizer, dict(net.named_parameters()), base, build("spider", {}, 0))
    except UserError as error:
        return str(error)
    return ""


def test_a_model_that_is_cut_in_part_is_refused():
    for message in launch(refused_mixture, 2):
        assert "Apply fully_shard to the whole model" in message


def other_world(mesh: tuple[int, ...], state: dict[str, Any]) -> str:
    training = Training.start(build("spider", {}, 0), mesh)
    try:
        training.attachment.load_state_dict(state)
    except UserError as error:
        return str(error)
    return ""


def spider_state(mesh: tuple[int, ...]) -> dict[str, Any]:
    training = Training.start(build("spider", {}, 0), mesh)
    training.step(0)
    return training.attachment.state_dict()


def test_a_state_of_another_number_of_processes_is_refused():
    states = launch(spider_state, 2, (2,))
    for message in launch(other_world, 3, (3,), states[0]):
        assert "processes 2 (here 3)" in message
