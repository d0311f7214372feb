"""What family auto refuses, each with one sentence, and what it settles: dates, image settings, parts, keys."""

from __future__ import annotations

import importlib.util
import json
import shutil
from datetime import datetime
from unittest import mock

import pytest
import torch
from transformers import ProcessorMixin, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import chat_template_utils

from benchmark.core.errors import UserError
from benchmark.data.record import Record
from benchmark.models import auto, auto_parts
from benchmark.models.auto_processor import on_one_day
from benchmark.models.batch import Item, Items, collate
from benchmark.spec import canonical, input_form
from tests.benchmark.models import auto_tiny, tiny
from tests.benchmark.models.test_models import item as question


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return auto_tiny.write("qwen2_vl", tmp_path_factory.mktemp("qwen") / "qwen2_vl")


@pytest.fixture
def copied(qwen, tmp_path):
    return shutil.copytree(qwen, tmp_path / "qwen2_vl")


def refusal(folder, **changes) -> str:
    with pytest.raises(UserError) as error:
        auto_tiny.load("qwen2_vl", folder, **changes)
    return str(error.value)


def edit(path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    assert "config.json is missing" in refusal(tmp_path)
    assert "is not a folder" in refusal(tmp_path / "nowhere")


def test_a_text_only_model_is_refused(tmp_path):
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=8, num_key_value_heads=2, **sizes)).save_pretrained(tmp_path)
    assert "model_type='qwen2', which takes no images" in refusal(tmp_path)


def test_an_unknown_type_is_refused_and_its_code_not_run(copied):
    edit(copied / "config.json", model_type="my_own", auto_map={"AutoConfig": "evil.Config"})
    text = refusal(copied)
    assert "model_type='my_own', which transformers does not load" in text and "never run" in text


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_weights_are_refused(copied, method):
    edit(copied / "config.json", quantization_config={"quant_method": method})
    text = refusal(copied)
    assert f"quantised weights ({method})" in text and "bfloat16" in text


def test_other_layouts_name_their_family(copied):
    edit(copied / "config.json", llm_cfg={})
    assert "VILA's folders" in (text := refusal(copied)) and text.endswith("Set model.family=vila.")
    edit(copied / "config.json", llm_cfg=None, text_config=None, mm_vision_tower="clip")
    assert refusal(copied).endswith("Set model.family=llava.")


def test_a_missing_processor_and_tokenizer_are_refused(copied):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copied / name).unlink(missing_ok=True)
    assert "has no processor" in refusal(copied)
    (copied / "processor_config.json").write_text("{}")
    (copied / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(copied)


def test_a_base_model_without_a_chat_template_is_refused(copied):
    for path in copied.glob("chat_template*"):
        path.unlink()
    edit(copied / "tokenizer_config.json", chat_template=None)
    assert "has no chat template, so it is a base model" in refusal(copied)


def test_a_truncated_weight_file_is_refused(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in refusal(copied)


def test_wrong_settings_are_refused(qwen):
    assert "Set model.preprocess=processor" in refusal(qwen, preprocess="pad")
    assert "uses all rows" in refusal(qwen, vocab_size=100)
    text = refusal(qwen, max_tiles=4)
    assert "have no such setting. It has min_pixels, max_pixels." in text
    assert "min_pixels=999 is more than model.max_pixels=99" in refusal(qwen, min_pixels=999, max_pixels=99)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
def test_a_type_whose_processor_needs_a_package_names_it(tmp_path):
    auto_tiny.write("mistral3", tmp_path / "mistral3")
    with pytest.raises(UserError, match="PixtralProcessor needs the package torchvision, which is not installed"):
        auto_tiny.load("mistral3", tmp_path / "mistral3")


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_the_structure_shows_the_parts_of_every_listed_type():
    from transformers import AutoModelForImageTextToText

    for kind, make in auto_tiny.TYPES.items():
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(make()[0])
        assert auto_parts.detect(model) == auto_parts.PARTS[kind], kind


def test_parts_of_an_unlisted_type_must_be_confirmed(qwen, monkeypatch):
    parts = auto_parts.PARTS["qwen2_vl"]
    monkeypatch.setattr(auto_parts, "PARTS", {})
    text = refusal(qwen)
    assert "not in the table" in text and "projector=[model.visual.merger]" in text and "qwen2_vl_tiny.yaml" in text
    named = {"decoder": parts.decoder, "projector": parts.projector, "tower": parts.tower}
    assert auto_tiny.load("qwen2_vl", qwen, **named).projector_prefix == ("model.visual.merger.",)


@pytest.mark.parametrize(("change", "said"), [
    ({"projector": ("model.visual.mergers",)}, "the model has no module model.visual.mergers"),
    ({"projector": ("model",)}, "and another part share modules"),
    ({"decoder": "model.visual.blocks"}, "model.visual.blocks has 2 blocks, the configuration has 3"),
    ({"projector": ("lm_head",)}, "lm_head.weight is tied to the embedding, so training it would change the voc"),
])
def test_parts_that_do_not_fit_are_refused(qwen, change, said):
    parts = auto_parts.PARTS["qwen2_vl"]
    named = {"decoder": parts.decoder, "projector": parts.projector, "tower": parts.tower} | change
    assert said in refusal(qwen, **named)


# ---------------------------------------------------------------------------------------------------------------------
# Conversations


def test_a_conversation_is_the_same_on_every_day(tmp_path):
    template = auto_tiny.MISTRAL.replace("IMAGE", "[IMG]")
    fixed = on_one_day(template, tmp_path)
    texts = set()
    for source, day in ((fixed, 3), (fixed, 4), (template, 3), (template, 4)):
        with mock.patch.object(chat_template_utils, "datetime") as clock:
            clock.now.return_value = datetime(2026, 1, day)
            text, _ = chat_template_utils.render_jinja_template([[{"role": "user", "content": "Q"}]],
                                                                chat_template=source, bos_token="", eos_token="")
            texts.add(text[0])
    assert "Today is 26 Jul 2024" in "".join(texts) and len(texts) == 3  # one for the fixed, two for the others


def test_a_computed_date_is_refused(tmp_path):
    with pytest.raises(UserError, match="differ from day to day"):
        on_one_day("{{ strftime_now(format) }}", tmp_path)


@pytest.mark.parametrize("kind", ["qwen2_vl", "internvl", "smolvlm", "gemma3", "llava_next"])
def test_a_training_sample_is_what_the_template_writes(kind, tmp_path):
    inputs = auto_tiny.load(kind, auto_tiny.write(kind, tmp_path / kind)).inputs
    chat = inputs.conversation
    whole = chat.render("What is shown?", "A cat.", True)
    content = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
    answer = [{"type": "text", "text": "A cat."}]
    theirs = ProcessorMixin.apply_chat_template(
        inputs.processor, [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        chat_template=chat.template,
    ).removeprefix("<s>")
    ended = theirs.rstrip() + ("</s>" if chat.end == "</s>" else "")
    assert whole.removeprefix("<s>") == ended


def test_a_template_that_differs_by_white_space_trains_what_generation_continues(tmp_path):
    inputs = auto_tiny.load("llava_onevision", auto_tiny.write("llava_onevision", tmp_path / "m")).inputs
    whole = inputs.conversation.render("What?", "A cat.", False)
    assert whole.endswith("<|im_start|>assistant\nA cat.<|im_end|>")
    assert inputs.conversation.render("What?", None, False) + "A cat.<|im_end|>" == whole


def test_a_template_that_rewrites_the_prompt_is_refused(copied):
    (copied / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][-1]['text'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>{% endif %}"
    )
    assert "otherwise than the prompt of a finished conversation" in refusal(copied)
    (copied / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][-1]['text'] }} -- {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert "which is no special token" in refusal(copied)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_image_settings_change_pixels_and_keys(qwen):
    plain, small = auto_tiny.load("qwen2_vl", qwen), auto_tiny.load("qwen2_vl", qwen, max_pixels=256)
    large = auto_tiny.load("qwen2_vl", qwen, min_pixels=4096, max_pixels=4096)
    counts = [loaded.inputs.image_tokens((64, 48)) for loaded in (small, plain, large)]
    assert counts == sorted(counts) and len({*counts}) == 3
    forms = [input_form(auto_tiny.spec("qwen2_vl", qwen, **more)) for more in ({}, {"max_pixels": 256})]
    assert forms[0] != forms[1] and forms[1]["max_pixels"] == 256
    assert not {"min_pixels", "max_pixels", "split_images", "decoder", "projector", "tower"} & forms[0].keys()


def test_tiles_can_be_switched_off(tmp_path):
    folder = auto_tiny.write("smolvlm", tmp_path / "smolvlm")
    split, whole = (auto_tiny.load("smolvlm", folder, split_images=flag).inputs for flag in (True, False))
    assert split.image_tokens((64, 48)) > whole.image_tokens((64, 48)) > 0
    folder = auto_tiny.write("internvl", tmp_path / "internvl")
    many, few = (auto_tiny.load("internvl", folder, max_tiles=tiles).inputs for tiles in (4, 1))
    assert many.image_tokens((90, 30)) > few.image_tokens((90, 30)) > 0


def test_older_keys_do_not_change():
    from benchmark.config.request import request

    for model in request(["methods=zero_shot", "table=table5"]).models:
        assert {*canonical(model)} <= {"id", "family", "preprocess", "max_length", "vocab_size", "transparency"}


def test_images_that_do_not_fit_into_memory_are_read_again(qwen, tmp_path, monkeypatch):
    from benchmark.models import auto_inputs

    tiny.picture(64, 48).save(tmp_path / "a.png")
    record = Record("a", "toy", "test", tmp_path / "a.png", "What?", None, (), None, "a", {})
    kept = Items(auto_tiny.load("qwen2_vl", qwen), [record], supervised=False)
    monkeypatch.setattr(auto_inputs, "KEPT_BYTES", 0)
    loaded = auto_tiny.load("qwen2_vl", qwen)
    read = Items(loaded, [record], supervised=False)
    assert kept.in_memory and not read.in_memory
    assert all(torch.equal(kept[0].image[name], value) for name, value in read[0].image.items())


def test_missing_images_are_counted(qwen, tmp_path):
    records = [Record(f"{n}", "toy", "test", tmp_path / f"{n}.png", "What?", None, (), None, "a", {}) for n in range(2)]
    with pytest.raises(UserError, match=r"2 of 2 items cannot be used. The first: .*Cannot read the image .*0\.png"):
        Items(auto_tiny.load("qwen2_vl", qwen), records, supervised=False)


def test_too_long_texts_are_refused(qwen):
    inputs = auto_tiny.load("qwen2_vl", qwen, max_length=30).inputs
    with pytest.raises(UserError, match="longer than max_length=30.*smaller image size"):
        inputs.encode_text("What?", None, (64, 48))
    with pytest.raises(UserError, match="max_length=30 cuts off the whole answer"):
        inputs.encode_text("What?", "A", (64, 48))
    with pytest.raises(UserError, match="is empty"):
        inputs.encode_text("What?", " ", None)
    assert auto_tiny.load("qwen2_vl", qwen).inputs.encode_text("a", "b", (64, 48))


# ---------------------------------------------------------------------------------------------------------------------
# Two families, one model


def test_llava_hf_agrees_with_our_own_family(tmp_path):
    folder = auto_tiny.write("llava", tmp_path / "llava")
    generic = auto_tiny.load("llava", folder)
    own = auto_tiny.load("llava", folder, family="llava", preprocess="crop")
    picture = tiny.picture(64, 48)
    pixels = generic.inputs.tensors(picture)["pixel_values"]
    torch.testing.assert_close(pixels[0], own.image_processor(picture), rtol=0, atol=5e-7)
    batch = collate(own, [question(own, "a", "what colour is this?", "red", None)], "right")
    image = torch.full((1, own.image_seq_length), own.image_token_id)
    ids = torch.cat([batch["input_ids"][:, :1], image, batch["input_ids"][:, 1:]], dim=1)
    ours = Item("a", ids[0].tolist(), ids[0].tolist(), pixels[0])
    theirs = Item("a", ids[0].tolist(), ids[0].tolist(), {"pixel_values": pixels})
    with torch.no_grad():
        one = own.model(**(collate(own, [ours], "right"))).logits
        two = generic.model(**(collate(generic, [theirs], "right"))).logits
    assert one.shape == two.shape and one.abs().max() > 0.1
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_the_module_needs_no_weights_for_inputs(copied):
    (copied / "model.safetensors").unlink()
    assert auto.load_inputs(copied, auto_tiny.spec("qwen2_vl", copied)).encode_text("Q", "A", (64, 48))
