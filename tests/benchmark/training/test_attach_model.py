"""`attach` by a method's id: w* from the model, a folder or a state dict; exact resume; one sentence per mistake."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmark.core.errors import UserError
from benchmark.training.attach_model import attach_model as attach

STEPS = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6))


def adamw(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, **{"lr": 1e-2, "eps": 1e-5} | settings)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(number))
    (model(x) - x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def through_a_file(value: Any) -> Any:
    """Save and load as a user would, without code in the file."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def trained(method: str, model: nn.Module, base: Any = None, **params: Any) -> dict[str, Tensor]:
    optimizer = adamw(model)
    attach(method, optimizer, model, pretrained=base, **params)
    for number in range(STEPS):
        step(model, optimizer, number)
    return weights(model)


def test_the_base_is_what_the_model_holds_or_what_the_user_names():
    held = trained("spider", network())
    named = trained("spider", network(), weights(network()))
    other = trained("spider", network(), {name: torch.ones_like(p) for name, p in network().named_parameters()})
    assert all(torch.equal(held[name], named[name]) for name in held)
    assert any((other[name] == 1).any() for name in other) and not any((held[name] == 1).any() for name in held)


def test_wrappers_change_no_name_and_no_number():
    class Wrapper(nn.Module):
        """As DDP and torch.compile wrap a model."""

        def __init__(self, name: str, inner: nn.Module) -> None:
            super().__init__()
            setattr(self, name, inner)
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, self.name)(x)

    plain = trained("spider", network())
    for name in ("module", "_orig_mod"):
        model = Wrapper(name, network())
        optimizer = adamw(model)
        attachment = attach("spider", optimizer, model, pretrained=weights(network()))
        assert {shard.name for shard in attachment.shards} == plain.keys()
        for number in range(STEPS):
            step(model, optimizer, number)
        assert all(torch.equal(value, plain[key]) for key, value in weights(getattr(model, name)).items())


def saved_halfway() -> dict[str, Any]:
    model = network()
    optimizer = adamw(model)
    attachment = attach("spider", optimizer, model)
    for number in range(STEPS // 2):
        step(model, optimizer, number)
    return through_a_file({
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "method": attachment.state_dict(),
    })


def test_a_resumed_training_ends_with_the_same_bits():
    saved, model = saved_halfway(), network()
    model.load_state_dict(saved["model"])
    optimizer = adamw(model)
    optimizer.load_state_dict(saved["optimizer"])
    attach("spider", optimizer, model, pretrained=weights(network())).load_state_dict(saved["method"])
    for number in range(STEPS // 2, STEPS):
        step(model, optimizer, number)
    whole = trained("spider", network())
    assert all(torch.equal(value, whole[name]) for name, value in weights(model).items())


def test_a_base_that_is_attached_before_the_weights_are_loaded_is_named_too():
    saved, model = saved_halfway(), network()
    optimizer = adamw(model)
    attachment = attach("spider", optimizer, model)  # the model still holds w*
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    attachment.load_state_dict(saved["method"])
    for number in range(STEPS // 2, STEPS):
        step(model, optimizer, number)
    whole = trained("spider", network())
    assert all(torch.equal(value, whole[name]) for name, value in weights(model).items())


def test_a_resumed_training_must_name_the_base():
    saved, model = saved_halfway(), network()
    model.load_state_dict(saved["model"])
    optimizer = adamw(model)
    attachment = attach("spider", optimizer, model)
    with pytest.raises(UserError, match=r"other base weights.*no longer holds w\*, so name the base: pretrained="):
        attachment.load_state_dict(saved["method"])
    optimizer = adamw(model)
    optimizer.load_state_dict(saved["optimizer"])
    with pytest.raises(UserError, match=r"has stepped before.*Name the base: pretrained="):
        attach("spider", optimizer, model)


def test_a_state_of_another_number_of_processes_is_refused():
    saved, model = saved_halfway(), network()
    saved["method"]["place"] |= {"processes": 2, "fragments": "of one of two"}
    with pytest.raises(UserError, match=r"saved with processes 2 \(here 1\)"):
        attach("spider", adamw(model), model).load_state_dict(saved["method"])


def test_a_removed_method_makes_room_for_another():
    model = network()
    optimizer = adamw(model)
    attachment = attach("spider", optimizer, model)
    with pytest.raises(UserError, match="attached to this optimizer already"):
        attach("l2_reg", optimizer, model)
    attachment.remove()
    attach("l2_reg", optimizer, model)


# ---------------------------------------------------------------------------------------------------------------
# Folders


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
    ))


def sources(attachment: Any) -> dict[str, Tensor]:
    return {shard.name: shard.pretrained.view(shard.shape) for shard in attachment.shards}


def test_a_folder_is_read_tensor_by_tensor(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    base = weights(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.model.requires_grad_(False)
    found = sources(attach("spider", adamw(model), model, pretrained=tmp_path))
    assert found.keys() == {"lm_head.weight"} and torch.equal(found["lm_head.weight"], base["lm_head.weight"])


def test_a_file_that_no_loader_reads_is_left_alone(tmp_path):
    """A copy beside the weights must not take their place."""
    from safetensors.torch import save_file

    model = llama()
    model.save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.ones(16, 8)}, tmp_path / "older.safetensors")
    model.model.requires_grad_(False)
    found = sources(attach("spider", adamw(model), model, pretrained=tmp_path))
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight) and not (found["lm_head.weight"] == 1).all()


def test_a_folder_with_the_older_names_of_its_model_is_read(tmp_path):
    from safetensors.torch import load_file, save_file

    from tests.benchmark.models import tiny

    tiny.write("llava", tmp_path)
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    older = {name.replace("model.language_model.", "language_model.model."): value for name, value in stored.items()}
    save_file(older, tmp_path / "model.safetensors", {"format": "pt"})
    model.requires_grad_(False)
    model.model.language_model.layers[0].requires_grad_(True)
    found = sources(attach("spider", adamw(model), model, pretrained=tmp_path))
    assert len(found) == 9 and all(torch.equal(value, model.get_parameter(name)) for name, value in found.items())


def test_a_folder_with_some_older_names_is_read(tmp_path):
    """As Qwen2-VL's: its output layer has the name that it has in the model, its blocks have others."""
    from safetensors.torch import load_file, save_file

    from tests.benchmark.models import tiny

    tiny.write("llava", tmp_path)
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = {"model.language_model.": "language_model.model.", "language_model.lm_head.": "lm_head."}
    older = {}
    for name, value in stored.items():
        for new, old in names.items():
            name = name.replace(new, old)
        older[name] = value
    save_file(older, tmp_path / "model.safetensors", {"format": "pt"})
    model.requires_grad_(False)
    model.model.language_model.layers[0].requires_grad_(True)
    model.lm_head.requires_grad_(True)
    found = sources(attach("half_ft_elements", adamw(model), model, pretrained=tmp_path))
    assert "lm_head.weight" in older and len(found) == 10
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in found.items())


def test_a_base_that_lacks_tensors_is_refused(tmp_path):
    model = network()
    with pytest.raises(UserError, match=r"the state dict lacks 3 trained tensors, such as 0.bias"):
        attach("spider", adamw(model), model, pretrained={"0.weight": torch.zeros(16, 6)})
    llama().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lacks 4 trained tensors"):
        attach("spider", adamw(model), model, pretrained=tmp_path)
    with pytest.raises(UserError, match=r"0.weight has shape \(16, 6\), in the base checkpoint \(2, 2\)"):
        attach("spider", adamw(model), model, pretrained=weights(model) | {"0.weight": torch.zeros(2, 2)})
    attach("spider", adamw(model), model)  # nothing was hooked before


# ---------------------------------------------------------------------------------------------------------------
# Adapters


def lora(name: str = "default") -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), adapter_name=name)


@pytest.mark.parametrize("method", ["l2_reg", "grafting", "half_ft_elements", "spider_gradient"])
def test_with_lora_the_base_is_the_adapters_start(method, tmp_path):
    model = lora("mine")
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path)
    assert len(start) == 4 and sources(attach(method, adamw(model), model)).keys() == start.keys()
    found = sources(attach(method, adamw(model), model, pretrained=tmp_path / "mine"))
    assert all(torch.equal(found[name], value) for name, value in start.items())


def test_l2_pulls_an_adapter_to_its_start():
    far = {}
    for strength in (0.0, 1.0):
        model = lora()
        optimizer = adamw(model)
        attachment = attach("l2_reg", optimizer, model, strength=strength)
        tokens = torch.randint(0, 16, (4, 8), generator=torch.Generator().manual_seed(0))
        for _ in range(20):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        far[strength] = attachment.diagnostics()["rms_delta"]
    assert 0 < far[1.0] < 0.7 * far[0.0]


@pytest.mark.parametrize("method", [
    "spider", "spider_code", "spider_magnitude", "examples.soft_spider.soft_spider:SoftSpider",
])
def test_methods_that_rank_by_size_refuse_lora(method):
    model = lora()
    with pytest.raises(UserError, match="LoRA's B begins with zeros. Use l2_reg or grafting"):
        attach(method, adamw(model), model)


def test_half_ft_needs_decoder_layers():
    model = network()
    with pytest.raises(UserError, match="half_ft draws whole matrices of decoder layers.*Use half_ft_elements"):
        attach("half_ft", adamw(model), model)
    attach("half_ft_elements", adamw(model), model)


# ---------------------------------------------------------------------------------------------------------------
# Mistakes: one sentence each, before the first step


def compiled(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = adamw(model)
    optimizer.step = torch.compile(optimizer.step)
    return optimizer


def two_of_four(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([model[0].weight, model[0].bias])


def half_frozen() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)
    return model


class Fsdp1(nn.Sequential):
    """Stands for the class whose name it has; making a real one needs a process group."""


Fsdp1.__module__, Fsdp1.__qualname__ = "torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"


@pytest.mark.parametrize(("make", "optimizer", "text"), [
    (lambda: network().requires_grad_(False), lambda model: torch.optim.AdamW(model.parameters()), "nothing to train"),
    (lambda: network().to("meta"), adamw, "0.weight is on the meta device: its values are offloaded"),
    (network, lambda model: adamw(network()), "The optimizer holds no trained tensor of the model"),
    (half_frozen, lambda model: torch.optim.AdamW(model.parameters()), "holds 2 frozen tensors. Make it from those"),
    (network, two_of_four, "2.weight (and 1 more) requires a gradient but is not in the optimizer. Add it"),
    (lambda: network().bfloat16(), adamw, "would train in torch.bfloat16, where rounding swallows most updates"),
    (lambda: network().half(), adamw, "would train in torch.float16"),
    (network, compiled, "is compiled, which leaves out hooks"),
    (network, lambda model: "adamw", "str is not a torch.optim.Optimizer"),
    (lambda: Fsdp1(*network()), adamw, "FSDP1 joins several tensors into one. Use FSDP2"),
], ids=["frozen", "meta", "other model", "frozen ones", "left out", "bfloat16", "float16", "compiled", "no optimizer",
        "FSDP1"])
def test_a_mistake_is_one_message_and_nothing_is_hooked(make, optimizer, text):
    model = make()
    steps = optimizer(model)
    with pytest.raises(UserError) as error:
        attach("spider", steps, model)
    assert text in str(error.value) and len(str(error.value)) < 300 and "\n" not in str(error.value)
    assert not getattr(steps, "_optimizer_step_pre_hooks", None)


@pytest.mark.parametrize(("method", "params", "text"), [
    ("spidr", {}, "Did you mean 'spider'"), ("dare", {}, "docs/merging.md"), ("zero_shot", {}, "trains nothing"),
    ("lora", {}, "peft library"), ("ewc", {}, "measures importances.*Use l2_reg"),
    ("spider", {"momentun": 0.9}, "Did you mean 'momentum'"),
    ("spider", {"momentum": 2.0}, "must be at least 0 and below 1"),
])
def test_a_wrong_method_or_parameter_is_refused(method, params, text):
    model = network()
    with pytest.raises(UserError, match=text):
        attach(method, adamw(model), model, **params)


def test_a_deep_copy_of_a_model_does_not_share_its_base():
    model = network()
    other = copy.deepcopy(model)
    with pytest.raises(UserError, match="would train the pretrained value itself; give a copy"):
        attach("spider", adamw(model), model, pretrained=dict(model.named_parameters()))
    attach("spider", adamw(model), model, pretrained=dict(other.named_parameters()))


def test_rounding_swallows_updates_of_bfloat16_weights():
    """Why these are refused; docs/library.md has the numbers of a longer run."""
    unmoved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = network().to(dtype)
        base, optimizer = weights(model), adamw(model, lr=2e-5, eps=1e-8)
        for number in range(10):
            x = torch.randn(12, 6, generator=torch.Generator().manual_seed(number)).to(dtype)
            (model(x) - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        same = torch.cat([(value == base[name]).flatten() for name, value in weights(model).items()])
        unmoved[dtype] = same.double().mean().item()
    assert unmoved[torch.float32] == 0 and unmoved[torch.bfloat16] > 0.7
