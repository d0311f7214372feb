"""What `audit protocol` shows of one conversation, with a tokenizer's mask and without."""

from __future__ import annotations

from dataclasses import replace

from benchmark.audit.protocol import SUPERVISED, describe, sample
from benchmark.config.request import request
from benchmark.models.prompt import render
from benchmark.reporting import tables
from tests.benchmark.models import tiny

PROMPT = "what colour is this animal ?\nA. red\nB. blue"


def coloured(text) -> str:
    """Return the highlighted part."""
    return "".join(text.plain[span.start : span.end] for span in text.spans if span.style == SUPERVISED)


def test_the_text_is_the_prompt_byte_for_byte_and_only_the_answer_is_coloured():
    text = sample(PROMPT, "B", True, None, None)
    assert text.plain == render(PROMPT, "B", True) and coloured(text) == " B</s>"
    asked = sample(PROMPT, None, False, None, None)
    assert asked.plain == render(PROMPT, None, False) and coloured(asked) == ""
    assert "ASSISTANT:« B</s>»" in sample(PROMPT, "B", True, None, None, marks=True).plain


def test_the_stop_rule_is_shown():
    spec = request(["profile=paper"], grid=False).datasets["gqa"]
    assert "stops at </s> (vicuna_v1's separator) or after 128 new tokens" in "\n".join(describe(spec))
    lines = describe(replace(spec, stop=("\n", "###")))
    assert "stops at </s> (vicuna_v1's separator), at '\\n', at '###' or after 128" in "\n".join(lines)
    assert tables.protocol(replace(spec, stop=("\n",)), "test").endswith(r"greedy, up to '\n'")


def test_with_a_tokenizer_the_colour_is_the_label_mask():
    words = tiny.tokenizer()
    text = sample(PROMPT, "B", True, words, tiny.TinySpec("t", "llava", "", "pad"))
    count = len(words(" B", add_special_tokens=False).input_ids) + 1
    assert coloured(text) == " B</s>" and f"[{count} of " in text.plain
