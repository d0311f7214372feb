"""Prompt tuning: the peft library's own, its gradients, caches, padding, recomputation, and a model left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from benchmark.core.errors import UserError
from methods.adapter_sizes import elements
from methods.registry import METHODS, build
from tests.methods.test_prefix import llama

TOKENS, HIDDEN = 3, 16
PATH = "model.embed_tokens"
CLOSE = {"rtol": 0, "atol": 1e-6}  # rotary embeddings are float32 in the library, whatever the model is


def prompted(seed=0):
    """Return a model with a prompt of random values, and the method."""
    model, method = llama(), build("prompt_tuning", {"tokens": TOKENS}, seed)
    method.insert(model, [PATH], None)
    prompt = model.model.embed_tokens.prompt
    with torch.no_grad():
        prompt.copy_(0.5 * torch.randn(prompt.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    model.requires_grad_(False)
    prompt.requires_grad_(True)
    return model, method


def peft_model(prompt):
    """Return the library's model with this prompt."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    theirs = get_peft_model(llama(), config).double()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(prompt)
    return theirs


IDS = torch.tensor([[5, 9, 2, 17, 8], [3, 0, 31, 6, 1]])


def test_it_is_the_librarys_prompt_with_its_loss_and_gradient():
    model, _ = prompted()
    prompt = model.model.embed_tokens.prompt
    theirs = peft_model(prompt)
    labels = IDS.clone()
    labels[:, :2] = -100
    ours, other = model(IDS, labels=labels), theirs(IDS, attention_mask=torch.ones_like(IDS), labels=labels)
    assert ours.logits.shape[1] == IDS.shape[1]  # no output for a virtual token, so no label moves
    torch.testing.assert_close(ours.logits, other.logits[:, TOKENS:], **CLOSE)
    torch.testing.assert_close(ours.loss, other.loss, **CLOSE)
    ours.loss.backward()
    other.loss.backward()
    found, expected = prompt.grad, theirs.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.abs().min(1).values.max() > 1e-5


def test_caches_and_padding_change_nothing():
    """A start that is run once for two rows, then the rest; tokens one by one; padding on either side."""
    model, _ = prompted()
    ids = torch.tensor([[5, 9, 2, 17, 8], [5, 9, 31, 6, 1]])
    with torch.no_grad():
        whole = model(ids).logits
        cache = DynamicCache()
        model(ids[:1, :2], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 2  # no cache holds a virtual token
        cache.batch_repeat_interleave(2)
        rest = model(ids[:, 2:], past_key_values=cache, use_cache=True, attention_mask=torch.ones(2, 5)).logits
        torch.testing.assert_close(rest, whole[:, 2:], **CLOSE)
        cache = DynamicCache()
        steps = [model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(5)]
        torch.testing.assert_close(torch.cat(steps, 1), whole, **CLOSE)
        for left in (2, 0):
            padded, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
            padded[:, left : left + 5], mask[:, left : left + 5] = ids, 1
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            found = model(padded, attention_mask=mask, position_ids=positions).logits[:, left : left + 5]
            torch.testing.assert_close(found, whole, **CLOSE)


def test_another_prompt_is_read_at_once():
    """States of an earlier call serve only a call that continues its cache."""
    model, _ = prompted()
    with torch.no_grad():
        before = model(IDS).logits
        model.model.embed_tokens.prompt.mul_(-1)
        assert (model(IDS).logits - before).abs().max() > 1e-3
        model.model.embed_tokens.prompt.mul_(-1)
        assert torch.equal(model(IDS).logits, before)


def test_recomputed_activations_have_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model, _ = prompted()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for _ in range(2):  # two micro-batches
            model(IDS, labels=IDS).loss.backward()
        assert model.model.training and all(layer.training for layer in model.model.layers)
        gradients.append(model.model.embed_tokens.prompt.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)
    assert gradients[0].abs().max() > 1e-4


def test_greedy_answers_are_the_librarys():
    model, _ = prompted()
    theirs = peft_model(model.model.embed_tokens.prompt.detach())
    ids, options = IDS[:1], {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    expected = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    assert found.tolist() == expected.tolist() and found.shape[1] == 11
    assert (model(ids).logits - llama()(ids).logits).abs().max() > 1e-4


def test_it_begins_as_tokens_of_the_vocabulary_that_the_seed_draws():
    base, models = llama(), []
    for seed in (0, 0, 1):
        model = llama()
        build("prompt_tuning", {"tokens": TOKENS}, seed).insert(model, [PATH], None)
        models.append(model.model.embed_tokens.prompt.detach())
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])
    rows = [(base.model.embed_tokens.weight == row).all(1).nonzero().flatten().tolist() for row in models[0]]
    assert len({number for found in rows for number in found}) == TOKENS
    # As tokens, they would be the beginning of the prompt.
    model = llama()
    build("prompt_tuning", {"tokens": TOKENS}, 0).insert(model, [PATH], None)
    words = torch.tensor([[number for (number,) in rows]] * 2)
    expected = base(torch.cat([words, IDS], 1)).logits[:, TOKENS:]
    torch.testing.assert_close(model(IDS).logits, expected, **CLOSE)


def test_it_leaves_the_model_as_it_was():
    model, method = prompted()
    method.leave()
    model.model.embed_tokens = model.model.embed_tokens.base_layer
    assert torch.equal(model(IDS).logits, llama()(IDS).logits)
    assert not model.model._forward_pre_hooks and torch.equal(copy.deepcopy(model)(IDS).logits, model(IDS).logits)


def test_the_plan_counts_what_trains():
    params = {"tokens": TOKENS}
    assert elements(METHODS["prompt_tuning"].cls, params, [{"mlp.up_proj": (24, HIDDEN)}] * 2, HIDDEN) == 48
    assert prompted()[0].model.embed_tokens.prompt.numel() == 48


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="method=prompt_tuning needs sdpa attention, but this model uses eager"):
        build("prompt_tuning", {}, 0).insert(llama("eager"), [PATH], None)
    with pytest.raises(UserError, match="method.tokens=41 is above the 40 tokens of the vocabulary"):
        build("prompt_tuning", {"tokens": 41}, 0).insert(llama(), [PATH], None)
    with pytest.raises(UserError, match="tokens=0 must be above 0"):
        build("prompt_tuning", {"tokens": 0}, 0)
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="rotary position embeddings, which this model's decoder lacks"):
        build("prompt_tuning", {"tokens": 2}, 0).insert(learned, ["transformer.wte"], None)
