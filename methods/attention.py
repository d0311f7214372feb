"""Attention with more than the tokens' own keys and values: those of a prefix, or of virtual tokens, stand before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.core.errors import UserError

KERNEL = "sdpa"
ATTRIBUTE = "virtual_tokens"  # of an attention that reads some


class VirtualTokens:
    """Virtual tokens before the first token, whose keys and values every attention of a decoder reads.

    They come first and attention is causal, so no other token changes their keys and values: one run of them serves a
    whole batch. They stand at the positions -tokens to -1. Rotary embeddings see differences of positions only, so all
    other positions, masks and caches stay as they are, and no cache holds a virtual token.

    Args:
        decoder: the language model without its output layer.
        embeddings: returns their embeddings, (tokens, hidden).
    """

    running: VirtualTokens | None = None  # those that run now, alone

    def __init__(self, decoder: nn.Module, embeddings: Callable[[], Tensor]) -> None:
        self._decoder = decoder
        self._embeddings = embeddings
        self._states: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._hook = decoder.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, decoder: nn.Module, _: Any, inputs: Mapping[str, Any]) -> None:
        cache = inputs.get("past_key_values")
        # A call that continues a cache belongs to the call with which that cache began.
        continues = self._states and cache is not None and cache.get_seq_length() > 0
        if VirtualTokens.running is None and not continues:
            self._run()

    def _run(self) -> None:
        embeddings, training = self._embeddings(), self._decoder.training
        positions = torch.arange(-len(embeddings), 0, device=embeddings.device)[None]
        VirtualTokens.running, self._states = self, {}
        self._decoder.eval()  # without checkpointing, which would run them again among the others
        try:
            self._decoder(inputs_embeds=embeddings[None], position_ids=positions, use_cache=False)
        finally:
            VirtualTokens.running = None
            self._decoder.train(training)

    def keep(self, attention: nn.Module, key: Tensor, value: Tensor) -> None:
        """Note what an attention has made of the virtual tokens, (1, heads, tokens, size)."""
        setattr(attention, ATTRIBUTE, self)
        self._states[attention] = key, value

    def states(self, attention: nn.Module) -> tuple[Tensor, Tensor]:
        """Return their keys and values in an attention, (heads, tokens, size)."""
        key, value = self._states[attention]
        return key[0], value[0]

    def remove(self) -> None:
        """Let the decoder compute as before."""
        self._hook.remove()
        for attention in self._states:
            delattr(attention, ATTRIBUTE)
        self._states = {}


def with_prefix(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function of transformers that puts what a module has before its keys and values.

    Keys of a prefix have no position, so queries at every position see them alike, and no cache holds them.
    """

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        parts = _before(module, key, value)
        if parts is None:
            return attend(module, query, key, value, attention_mask, **options)
        asked, there = query.shape[2], key.shape[2]
        if attention_mask is None and asked > 1:  # the kernel would be told "causal", which a prefix shifts
            every = torch.ones(asked, there, dtype=torch.bool, device=key.device)
            attention_mask = every.tril(there - asked)[None, None]
        if attention_mask is not None:
            fill = 1.0 if attention_mask.dtype == torch.bool else 0.0
            attention_mask = F.pad(attention_mask, (parts[0].shape[1], 0), value=fill)

        def joined(part: Tensor, rest: Tensor) -> Tensor:
            return torch.cat([part.to(rest.dtype).expand(len(rest), -1, -1, -1), rest], dim=2)

        return attend(module, query, joined(parts[0], key), joined(parts[1], value), attention_mask, **options)

    attention.of_prefix = True  # type: ignore[attr-defined]  # so that it is registered once
    return attention


def _before(module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the keys and values (heads, tokens, size) that stand before an attention's own; None if there are none."""
    if VirtualTokens.running is not None:
        VirtualTokens.running.keep(module, key, value)
        return None
    if tokens := getattr(module, ATTRIBUTE, None):
        return tokens.states(module)
    found = [getattr(getattr(module, name, None), "prefix", None) for name in ("k_proj", "v_proj")]
    if found[0] is None or found[1] is None:
        return None
    heads, size = key.shape[1], key.shape[3]
    return found[0].view(-1, heads, size).transpose(0, 1), found[1].view(-1, heads, value.shape[3]).transpose(0, 1)


def register() -> None:
    """Make the attention of this process's models read prefixes; without one it computes as before."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    now = ALL_ATTENTION_FUNCTIONS[KERNEL]
    if not hasattr(now, "of_prefix"):
        AttentionInterface.register(KERNEL, with_prefix(now))


def check_kernel(method: str, model: nn.Module) -> None:
    """Refuse a model whose attention `register` does not reach.

    Raises:
        UserError: names its kernel.
    """
    config = getattr(model, "config", None)
    kernel = KERNEL if config is None else config.get_text_config()._attn_implementation
    if kernel != KERNEL:
        raise UserError(f"method={method} needs sdpa attention, but this model uses {kernel}. Use another adapter.")
