"""MethodCallback trains in transformers' Trainer as `attach` does in a plain loop, and resumes to the same bits."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmark.core.errors import UserError
from benchmark.training.attach import attach
from benchmark.training.callback import MethodCallback
from methods.registry import build

STEPS, ACCUMULATION, BATCH = 6, 2, 4


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, attn_implementation="eager",
    ))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("layers" in name)
    return made


def items() -> list[dict[str, torch.Tensor]]:
    """One batch per step; equal lengths, so that the mean over micro-batches is that over the batch."""
    torch.manual_seed(1)
    tokens = torch.randint(0, 32, (ACCUMULATION * BATCH, 10))
    return [{"input_ids": row, "labels": row} for row in tokens]


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2, eps=1e-4, weight_decay=0.01)


def trainer(folder, callback, net=None, **settings) -> Trainer:
    net = net or model()
    chosen = optimizer(net)
    return Trainer(
        net, arguments(folder, **settings), train_dataset=items(), callbacks=[callback],
        optimizers=(chosen, LambdaLR(chosen, lambda _: 1.0)),
    )


def arguments(folder, **settings) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=STEPS, max_grad_norm=0.3,
        report_to="none", logging_steps=2, disable_tqdm=True,
        **{"save_strategy": "no", "use_cpu": True, "gradient_accumulation_steps": ACCUMULATION} | settings,
    )


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}


def plain_loop(method: str) -> dict[str, torch.Tensor]:
    net = model()
    base, steps = weights(net), optimizer(net)
    attach(steps, {name: net.get_parameter(name) for name in base}, base, build(method, {}, 0))
    batch = {key: torch.stack([item[key] for item in items()]) for key in ("input_ids", "labels")}
    for _ in range(STEPS):
        net(**batch).loss.backward()
        nn.utils.clip_grad_norm_([net.get_parameter(name) for name in base], 0.3)
        steps.step()
        steps.zero_grad()
    return weights(net)


@pytest.mark.parametrize("method", ["spider", "half_ft", "grafting"])
def test_the_trainer_gives_the_weights_of_a_plain_loop(tmp_path, method):
    run = trainer(tmp_path, MethodCallback(method))
    run.train()
    expected = plain_loop(method)
    largest = max((weights(run.model)[name] - value).abs().max().item() for name, value in expected.items())
    moved = max((model().get_parameter(name) - value).abs().max().item() for name, value in expected.items())
    assert largest < 1e-6 < 1e-2 < moved


def test_the_log_has_the_methods_numbers(tmp_path):
    run = trainer(tmp_path, MethodCallback("spider"))
    run.train()
    rows = [row for row in run.state.log_history if "loss" in row]
    assert len(rows) == STEPS // 2
    assert all(0 < row["spider/restored_fraction"] < 1 and row["spider/rms_delta"] > 0 for row in rows)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    base = weights(model())
    whole = trainer(tmp_path / "whole", MethodCallback("spider"))
    whole.train()
    first = trainer(tmp_path / "parts", MethodCallback("spider"), save_strategy="steps", save_steps=3)
    first.train()
    second = trainer(tmp_path / "parts", MethodCallback("spider", pretrained=base))
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    ours, theirs = weights(whole.model), weights(second.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_training_needs_the_base_and_the_saved_state(tmp_path):
    trainer(tmp_path, MethodCallback("spider"), save_strategy="steps", save_steps=3).train()
    with pytest.raises(UserError, match=r"resumes at step 3: the model's weights are no longer w\*"):
        trainer(tmp_path, MethodCallback("spider")).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "checkpoint-3" / "spiderbench_method_0.pt").unlink()
    with pytest.raises(UserError, match="no state of spider for process 0"):
        trainer(tmp_path, MethodCallback("spider", pretrained=weights(model()))).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


def test_a_state_of_another_run_is_refused(tmp_path):
    """The trainer resumes from a copy elsewhere, and output_dir has a checkpoint of the same step."""
    base = weights(model())
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "one", MethodCallback("spider"), learning_rate=1e-3, **saving).train()
    other = model()
    with torch.no_grad():
        other.lm_head.weight.mul_(2)  # another loss, the same w*
    trainer(tmp_path / "two", MethodCallback("spider"), other, **saving).train()
    with pytest.raises(UserError, match="no state of spider for process 0 of the run that is resumed"):
        trainer(tmp_path / "two", MethodCallback("spider", pretrained=base)).train(
            resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2")
        )


def test_the_base_can_be_a_folder(tmp_path):
    model().save_pretrained(tmp_path / "base")
    callback = MethodCallback("spider", pretrained=tmp_path / "base")
    trainer(tmp_path, callback).train()
    assert {shard.name: shard.pretrained.numel() for shard in callback.attachment.shards} == {
        name: value.numel() for name, value in weights(model()).items()
    }
    with pytest.raises(UserError, match=r"pretrained=\S+: Checkpoint \S+ has no weights.*Give the folder of the base"):
        trainer(tmp_path, MethodCallback("spider", pretrained=tmp_path)).train()


@pytest.mark.parametrize(("method", "text"), [
    ("spidr", "Did you mean 'spider'"), ("dare", "docs/merging.md"), ("zero_shot", "trains nothing"),
    ("lora", "peft library"),
])
def test_a_method_that_cannot_train_here_is_refused(method, text):
    with pytest.raises(UserError, match=text):
        MethodCallback(method)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(UserError, match="momentum"):
        MethodCallback("spider", momentun=0.9)


def test_a_callback_trains_once(tmp_path):
    callback = MethodCallback("spider")
    trainer(tmp_path, callback).train()
    with pytest.raises(UserError, match="has trained before"):
        trainer(tmp_path, callback).train()


def test_two_methods_in_one_training_are_refused(tmp_path):
    run = trainer(tmp_path, MethodCallback("spider"))
    run.add_callback(MethodCallback("l2_reg"))
    with pytest.raises(UserError, match="A method is attached to this optimizer already"):
        run.train()


def test_a_state_of_more_processes_is_refused(tmp_path):
    trainer(tmp_path, MethodCallback("spider"), save_strategy="steps", save_steps=3).train()
    path = tmp_path / "checkpoint-3" / "spiderbench_method_0.pt"
    state = torch.load(path, weights_only=True)
    state["place"] |= {"processes": 3, "fragments": "of one of three"}
    torch.save(state, path)
    with pytest.raises(UserError, match=r"saved with processes 3 \(here 1\)"):
        trainer(tmp_path, MethodCallback("spider", pretrained=weights(model()))).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


def test_another_base_is_refused_on_resume(tmp_path):
    trainer(tmp_path, MethodCallback("spider"), save_strategy="steps", save_steps=3).train()
    tuned = tmp_path / "checkpoint-3"  # a folder with weights, but not those before the training
    with pytest.raises(UserError, match="belongs to other base weights"):
        trainer(tmp_path, MethodCallback("spider", pretrained=tuned)).train(resume_from_checkpoint=str(tuned))


def adapted() -> nn.Module:
    torch.manual_seed(2)
    return get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def test_an_adapter_trains_and_resumes_to_the_same_bits(tmp_path):
    adapted().save_pretrained(tmp_path / "start")
    whole = trainer(tmp_path / "whole", MethodCallback("l2_reg", strength=0.5), adapted())
    whole.train()
    first = trainer(
        tmp_path / "parts", MethodCallback("l2_reg", strength=0.5), adapted(), save_strategy="steps", save_steps=3
    )
    first.train()
    second = trainer(
        tmp_path / "parts", MethodCallback("l2_reg", pretrained=tmp_path / "start", strength=0.5), adapted()
    )
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    ours, theirs = weights(whole.model), weights(second.model)
    assert len(ours) == 8 and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any((ours[name] != value).any() for name, value in weights(adapted()).items())


def begin(net, steps, method="spider"):
    """What the Trainer does when training begins."""
    MethodCallback(method).on_train_begin(
        TrainingArguments(output_dir="out", use_cpu=True), types.SimpleNamespace(global_step=0), None, model=net,
        optimizer=steps,
    )


def test_a_model_with_nothing_to_train_is_refused():
    net = model()
    steps = optimizer(net)
    with pytest.raises(UserError, match="No parameter of the model requires a gradient"):
        begin(net.requires_grad_(False), steps)


def test_bfloat16_weights_without_masters_are_refused():
    net = model().bfloat16()
    with pytest.raises(UserError, match="train float32 weights, with bf16 autocast"):
        begin(net, optimizer(net))


def test_an_optimizer_that_leaves_out_tensors_is_refused():
    net = model()
    with pytest.raises(UserError, match="is not in the optimizer"):
        begin(net, torch.optim.AdamW([next(p for p in net.parameters() if p.requires_grad)]))


@pytest.mark.parametrize(("module", "text"), [
    ("bitsandbytes.optim.adamw", "in 8 bits"), ("galore_torch.adamw", "projection"), ("lomo_optim.lomo", "backward"),
])
def test_optimizers_that_methods_cannot_work_with_are_refused_by_name(module, text, monkeypatch):
    """Stand-ins with the names of classes that are not installed here."""
    net = model()
    steps = type("AdamW", (torch.optim.AdamW,), {"__module__": module})(optimizer(net).param_groups)
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    with pytest.raises(UserError, match=text):
        begin(net, steps)


def test_a_compiled_step_is_refused():
    net = model()
    steps = optimizer(net)
    steps.step = torch.compile(steps.step)
    with pytest.raises(UserError, match="compiled"):
        begin(net, steps)


def test_weights_on_the_meta_device_are_refused():
    net = model().to("meta")
    with pytest.raises(UserError, match="meta device"):
        begin(net, optimizer(net))


def test_masks_by_size_refuse_lora():
    net = nn.Module()
    net.layer = nn.Module()
    net.layer.lora_A = nn.Linear(4, 2, bias=False)
    with pytest.raises(UserError, match="LoRA's B begins with zeros"):
        begin(net, torch.optim.AdamW(net.parameters()))
