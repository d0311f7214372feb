"""LoRA adapters: PEFT's own merge, the equation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, LlavaForConditionalGeneration

from benchmark.cli import main
from benchmark.core.errors import UserError
from benchmark.merging.merge import merge
from tests.benchmark.merging import checkpoints
from tests.benchmark.models import tiny
from tests.reference import lora

PREFIX = "base_model.model."


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """Write an adapter as PEFT does."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def halves(module: str, out: int = 5, wide: int = 7, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": torch.randn(rank, wide), f"{module}.lora_B.weight": torch.randn(out, rank)}


def base_of(root: Path, **more: torch.Tensor) -> Path:
    torch.manual_seed(0)
    return checkpoints.write(root / "base", {"a.proj.weight": torch.randn(5, 7), "b.proj.weight": torch.randn(5, 7),
                                             "norm.weight": torch.randn(7), "ids": torch.arange(3), **more})


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_equation(rslora, transposed, tmp_path):
    base = base_of(tmp_path)
    sizes = (7, 5) if transposed else (5, 7)
    tensors = {**halves("a.proj", *sizes), **halves("b.proj", *sizes, rank=3), "norm.weight": torch.ones(7)}
    adapter = write(tmp_path / "adapter", tensors, use_rslora=rslora, fan_in_fan_out=transposed,
                    rank_pattern={"b.proj": 3}, alpha_pattern={r"^b\.proj": 12})
    merge("lora", base, [adapter], tmp_path / "out")
    before, after = checkpoints.read(base), checkpoints.read(tmp_path / "out")
    for module, alpha in (("a.proj", 6), ("b.proj", 12)):
        down, up = (tensors[f"{module}.lora_{half}.weight"].double().numpy() for half in "AB")
        weight = before[f"{module}.weight"].double().numpy()
        expected = lora.merged(weight.T if transposed else weight, down, up, alpha, rslora)
        np.testing.assert_allclose(after[f"{module}.weight"], expected.T if transposed else expected, atol=1e-5)
    assert torch.equal(after["norm.weight"], torch.ones(7)) and torch.equal(after["ids"], before["ids"])
    assert "3 of 4 tensors changed" in (tmp_path / "out" / "README.md").read_text()


CASES = {
    "plain": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 10},
    "rslora": {"target_modules": "all-linear", "r": 3, "use_rslora": True, "bias": "none"},
    "patterns": {"target_modules": ["q_proj", "down_proj"], "r": 4, "rank_pattern": {"down_proj": 2},
                 "alpha_pattern": {"layers.1.self_attn.q_proj": 32}},
    "saved": {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "o_proj"], "r": 2},
    "fan_in_fan_out": {"target_modules": ["c_attn", "c_fc"], "r": 2, "fan_in_fan_out": True},
    "llava": {"target_modules": r".*language_model.*\.(q|up)_proj", "r": 2},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_pefts(case, tmp_path):
    """In float32, merge_and_unload and the merge on files give the same weights up to the last bits."""
    peft = pytest.importorskip("peft")
    base, cls = tmp_path / "base", LlamaForCausalLM
    if case == "fan_in_fan_out":
        cls = GPT2LMHeadModel
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2)).save_pretrained(base)
    elif case == "llava":
        cls = LlavaForConditionalGeneration
        tiny.write("llava", base)
    else:
        checkpoints.llama(base, 0, torch.float32)
    model = peft.get_peft_model(cls.from_pretrained(base), peft.LoraConfig(**CASES[case]))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(cls.from_pretrained(base), tmp_path / "adapter").merge_and_unload()
    assert main(["merge", "lora", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    merged, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected, start = theirs.state_dict(), cls.from_pretrained(base).state_dict()
    changed = 0
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)
        changed += not torch.equal(tensor, start[name])
    assert changed >= 2


def test_an_adapter_for_another_base_is_named_whole(tmp_path):
    base = base_of(tmp_path)
    adapter = write(tmp_path / "adapter", {**halves("a.proj", 6), **halves("c.proj"), "norm.weight": torch.ones(8)})
    with pytest.raises(UserError) as caught:
        merge("lora", base, [adapter], tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"The adapter {adapter} is not one for {base}: ")
    assert "a.proj.weight has [6, 7], there [5, 7] F32" in message and "c.proj.weight is not in it" in message
    assert "norm.weight has [8], there [7] F32" in message and "Give the base it was trained on, some/base." in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("named", "noted"), [("some/other", True), ("base", False), ("/gone/base", False)])
def test_a_base_that_fits_but_has_another_name_is_noted(named, noted, tmp_path, capsys):
    adapter = write(tmp_path / "adapter", halves("a.proj"), base_model_name_or_path=named)
    assert main(["merge", "lora", str(base_of(tmp_path)), str(adapter), str(tmp_path / "out")]) == 0
    assert (f"note: the adapter names {named} as its base" in capsys.readouterr().out) == noted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "is a LOHA adapter; only LORA is merged here"),
        ({"use_dora": True}, "sets use_dora=True, which changes more than"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights=pissa"),
        ({"target_parameters": ["experts"], "lora_bias": True}, "sets target_parameters=['experts'], lora_bias=True"),
        ({"some_new_setting": 3}, "sets some_new_setting=3"),
        ({"r": 4}, "are no matrices of rank 4"),
        ({"lora_alpha": None}, "lora_alpha=None of a.proj is no number"),
    ],
)
def test_other_kinds_are_refused_by_name(config, message, tmp_path):
    adapter = write(tmp_path / "adapter", halves("a.proj"), **config)
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("+", r"\+")):
        merge("lora", base_of(tmp_path), [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_whole_adapter(tmp_path):
    base = base_of(tmp_path)
    with pytest.raises(UserError, match="holds no adapter_config.json"):
        merge("lora", base, [checkpoints.write(tmp_path / "model", {"a": torch.ones(2)})], tmp_path / "out")
    lonely = halves("a.proj")
    del lonely["a.proj.lora_B.weight"]
    magnitude = {**lonely, "a.proj.lora_magnitude_vector": torch.ones(5)}
    with pytest.raises(UserError, match="is no part of plain LoRA; .*lora_A.weight lacks its other half"):
        merge("lora", base, [write(tmp_path / "lonely", magnitude)], tmp_path / "out")
    pickled = write(tmp_path / "pickled", halves("a.proj"))
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled files can run code"):
        merge("lora", base, [pickled], tmp_path / "out")
    both = write(tmp_path / "both", halves("a.proj"))
    with pytest.raises(UserError, match="is an adapter"):
        merge("lora", both, [pickled], tmp_path / "out")
