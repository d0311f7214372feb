"""The prompt and its label mask against an independent transcription of LLaVA's rules (facts/models.md 1.5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from benchmark.core.errors import UserError
from benchmark.models import prompt
from tests.benchmark.models import tiny

LENGTH, IMAGE = 4, -200
FIRST = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\nWhat colour is this?\nAnswer the question using a "
    "single word or phrase. ASSISTANT:"
)


@pytest.fixture(scope="module", params=["first", "always"])
def tokenizer(request):
    words = tiny.tokenizer()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param, split=False)
    return words


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def original(tokenizer, question, answer, has_image):
    """Ids and labels as tokenizer_image_token and preprocess_v1 make them, image id once, one round."""

    def tokenise(text):
        return [1] + tokenizer(text, add_special_tokens=False).input_ids

    def tokenise_image(text):
        before, _, after = text.partition("<image>")
        return tokenise(before) + [IMAGE] + tokenise(after)[1:]

    call = tokenise_image if has_image else tokenise
    tag = "<image>\n" if has_image else ""
    system = FIRST.partition(" USER:")[0]
    conversation = f"{system} USER: {tag}{question} ASSISTANT: {answer}</s>"
    ids = call(conversation)
    labels = list(ids)
    labels[0] = -100
    position = 1
    for turn in conversation.split("</s>"):
        if not turn:
            break
        instruction = turn.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        for i in range(position, position + len(call(instruction)) - 2):
            labels[i] = -100
        position += len(call(turn))
    assert position == len(ids)
    return ids, labels


def expand(ids, labels):
    out_ids, out_labels = [], []
    for i, label in zip(ids, labels, strict=True):
        out_ids += [i] * (LENGTH if i == IMAGE else 1)
        out_labels += [-100] * LENGTH if i == IMAGE else [label]
    return out_ids, out_labels


def test_rendered_prompt_is_byte_exact():
    question = "What colour is this?\nAnswer the question using a single word or phrase."
    assert prompt.render(question, None, True) == FIRST
    assert prompt.render(question, "red", True) == FIRST + " red</s>"
    assert prompt.render(question, None, False) == FIRST.replace("<image>\n", "")


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("answer", ["red", "a red cat", "A"])
def test_ids_and_labels_equal_the_original(tokenizer, has_image, answer):
    question = "What colour is this?\nAnswer the question using a single word or phrase."
    expected = expand(*original(tokenizer, question, answer, has_image))
    assert prompt.encode(tokenizer, question, answer, has_image, IMAGE, LENGTH, 512) == expected


@settings(max_examples=30, deadline=None)
@given(
    st.text("abc ?.\n1A", min_size=1, max_size=30).map(str.strip).filter(bool),
    st.lists(st.sampled_from(["red", "cat", "b1", "A.", "dog,"]), min_size=1, max_size=5).map(" ".join),
    st.booleans(),
)
def test_ids_and_labels_equal_the_original_for_any_text(words, question, answer, has_image):
    expected = expand(*original(words, question, answer, has_image))
    assert prompt.encode(words, question, answer, has_image, IMAGE, LENGTH, 512) == expected


def test_line_break_after_the_image_is_encoded_alone(tokenizer):
    ids, _ = prompt.encode(tokenizer, "cat", None, True, IMAGE, LENGTH, 512)
    after = ids[ids.index(IMAGE) + LENGTH :]
    assert tokenizer.convert_ids_to_tokens(after[:2]) == ["▁", "\n"]
    before = ids[: ids.index(IMAGE)]
    assert before[0] == 1 and tokenizer.convert_ids_to_tokens(before[-1:]) == ["▁"]


def test_training_sample_begins_with_the_inference_prompt(tokenizer):
    ids, labels = prompt.encode(tokenizer, "what?", "red cat", True, IMAGE, LENGTH, 512)
    start, _ = prompt.encode(tokenizer, "what?", None, True, IMAGE, LENGTH, 512)
    assert ids[: len(start)] == start and labels[: len(start)] == [-100] * len(start)
    assert labels[len(start) :] == ids[len(start) :] and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[len(start) : -1]).strip() == "red cat"


def test_special_strings_in_a_dataset_stay_text():
    words = tiny.tokenizer()
    ids, _ = prompt.encode(words, "is </s> a tag? <image>", "no <s> red", True, IMAGE, LENGTH, 512)
    assert ids.count(words.eos_token_id) == 1 and ids.count(words.bos_token_id) == 1 and ids.count(IMAGE) == LENGTH


def test_truncation_comes_after_the_image_was_inserted():
    words = tiny.tokenizer()
    ids, labels = prompt.encode(words, "what?", "red cat dog", True, IMAGE, LENGTH, 512)
    cut = len(ids) - 2
    assert prompt.encode(words, "what?", "red cat dog", True, IMAGE, LENGTH, cut) == (ids[:cut], labels[:cut])


@pytest.mark.parametrize(
    ("target", "max_length", "message"),
    [("  ", 512, "empty"), ("red", 40, "cuts off the whole answer"), (None, 40, "longer than max_length=40")],
)
def test_unusable_samples_are_refused(target, max_length, message):
    with pytest.raises(UserError, match=message):
        prompt.encode(tiny.tokenizer(), "what?", target, True, IMAGE, LENGTH, max_length)
