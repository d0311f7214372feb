"""Prefix tuning: attention in float64 numpy, caches and padding, and the peft library's own prefix."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmark.core.errors import UserError
from methods import attention
from methods.registry import build

TOKENS = 3


def llama(kernel="sdpa"):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation=kernel,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()


LAYERS = [f"model.layers.{number}.self_attn.{name}_proj" for number in range(2) for name in "kv"]


def prefixed(layers=LAYERS, scale=1.0):
    model = llama()
    build("prefix", {"tokens": TOKENS}, 0).insert(model, layers, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path in layers:
            part = model.get_submodule(path).prefix
            part.copy_(scale * torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return model


def softmax(scores):
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_every_token_attends_to_the_prefix(mask):
    """4 query heads share 2 heads of keys and values; the third of five tokens is masked as padding."""
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((2, heads, 5, 4)) for heads in (4, 2, 2))
    parts = [random.standard_normal((TOKENS, 8)) for _ in "kv"]
    allowed = np.tril(np.ones((5, 5), bool))
    if mask != "none":
        allowed[3:, 2] = False
    given = {"none": None, "bool": torch.tensor(allowed)[None, None].expand(2, 1, 5, 5)}.get(mask)
    if mask == "float":
        given = torch.tensor(np.where(allowed, 0.0, -np.inf))[None, None].expand(2, 1, 5, 5)
    module = SimpleNamespace(
        k_proj=SimpleNamespace(prefix=torch.tensor(parts[0])), v_proj=SimpleNamespace(prefix=torch.tensor(parts[1])),
        num_key_value_groups=2, is_causal=True, training=False,
    )
    attend = attention.with_prefix(plain_kernel())
    found, _ = attend(module, *map(torch.tensor, (query, key, value)), given, scaling=0.5, dropout=0.0)
    for row in range(2):
        for head in range(4):
            shared = head // 2
            keys, values = (
                np.concatenate([part[:, 4 * shared : 4 * shared + 4], rest[row, shared]])
                for part, rest in zip(parts, (key, value), strict=True)
            )
            scores = 0.5 * query[row, head] @ keys.T
            scores[:, TOKENS:][~allowed] = -np.inf
            np.testing.assert_allclose(found[row, :, head], softmax(scores) @ values, atol=1e-12)


def plain_kernel():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def test_a_model_without_a_prefix_computes_the_same_bits():
    ids = torch.arange(12).view(2, 6)
    before = llama()(ids).logits
    prefixed()  # registers the attention
    assert torch.equal(llama()(ids).logits, before)
    assert not torch.allclose(prefixed()(ids).logits, before, atol=1e-3)
    last = prefixed(LAYERS[2:])
    assert torch.equal(last.model.layers[0](last.model.embed_tokens(ids), position_embeddings=rotary(last, 6)),
                       llama().model.layers[0](last.model.embed_tokens(ids), position_embeddings=rotary(last, 6)))


def rotary(model, length):
    return model.model.rotary_emb(torch.zeros(1, length, 16, dtype=torch.float64), torch.arange(length)[None])


def test_padding_and_caches_change_nothing():
    model, ids = prefixed(), torch.tensor([[5, 9, 2, 17, 30, 8]])
    whole = model(ids).logits
    cache = DynamicCache()
    model(ids[:, :3], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 3  # the prefix is in no cache
    rest = [model(ids[:, 3:5], past_key_values=cache, use_cache=True, attention_mask=torch.ones(1, 5)).logits]
    rest.append(model(ids[:, 5:], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(rest, 1), whole[:, 3:], rtol=0, atol=1e-12)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    found = model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 2:]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


def test_it_is_the_librarys_prefix_with_keys_at_its_positions():
    """peft puts the prefix into the cache, so real tokens begin at position 3: the same as keys rotated by 3."""
    from peft import PrefixTuningConfig, get_peft_model

    ours, ids = prefixed(), torch.tensor([[5, 9, 2, 17], [3, 0, 31, 6]])
    theirs = get_peft_model(llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)).double()
    cos, sin = ours.model.rotary_emb(torch.zeros(1, 1, 16, dtype=torch.float64), torch.tensor([[TOKENS]]))
    columns = []
    for path in LAYERS:
        part = ours.get_submodule(path).prefix.detach().view(TOKENS, 2, 4)
        if path.endswith("k_proj"):
            part, _ = apply_rotary_pos_emb(part[None].transpose(1, 2), part[None].transpose(1, 2), cos, sin)
            part = part[0].transpose(0, 1)
        columns.append(part)
    with torch.no_grad():
        weight = theirs.prompt_encoder["default"].embedding.weight
        weight.copy_(torch.stack(columns, 1).reshape(TOKENS, -1))
        found = theirs(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(ours(ids).logits, found, rtol=0, atol=1e-6)


def test_it_trains_and_the_first_keys_follow_from_the_seed():
    one, other = llama(), llama()
    for model, seed in ((one, 0), (other, 1)):
        build("prefix", {"tokens": TOKENS}, seed).insert(model, LAYERS, None)
    assert one.model.layers[1].self_attn.k_proj.prefix.shape == (TOKENS, 8)
    assert not torch.equal(one.get_submodule(LAYERS[0]).prefix, other.get_submodule(LAYERS[0]).prefix)
    assert not torch.equal(one.get_submodule(LAYERS[0]).prefix, one.get_submodule(LAYERS[2]).prefix)
    assert not one.get_submodule(LAYERS[1]).prefix.any()
    one(torch.arange(6)[None]).logits.square().sum().backward()
    assert all(one.get_submodule(path).prefix.grad.abs().max() > 0 for path in LAYERS)


def test_another_kernel_is_refused():
    with pytest.raises(UserError, match="needs sdpa attention, but this model uses eager"):
        build("prefix", {}, 0).insert(llama("eager"), LAYERS, None)
