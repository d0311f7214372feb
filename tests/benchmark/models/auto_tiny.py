"""Random checkpoints of many types, small enough for a unit test: sizes shrunk, tokenizer and processor built here."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import benchmark.models
from benchmark.models import LoadedModel
from benchmark.models.folder import quiet
from benchmark.spec import ModelSpec

CORPUS = [
    "What colour is this animal? Answer the question using a single word.\nred blue green cat dog A B C D",
    "user assistant system User: Assistant: You are a helpful assistant. USER: ASSISTANT: model 26 Jul 2024 Today",
    "0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ .,:;'?!</>\n\n",
]
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
}
PLAIN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
# Chat templates in the forms of the public checkpoints.
QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n" + CONTENT + "<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONEVISION = (  # the public one: a finished answer follows "assistant ", generation follows "assistant"
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}\n{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}" + CONTENT + "{{ ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}" + CONTENT
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n" + CONTENT + "<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}[SYSTEM_PROMPT]Today is {{ strftime_now('%d %b %Y') }}[/SYSTEM_PROMPT]{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST]" + CONTENT + "[/INST]{% else %}" + CONTENT + "{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@functools.cache
def _backend(special: tuple[str, ...], adds_begin: bool) -> str:
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(
        vocab_size=420, special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    ))
    if adds_begin:
        from tokenizers.processors import TemplateProcessing

        begin = special[1]
        raw.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 1)])
    return raw.to_str()


def tokenizer(*special: str, adds_begin: bool = False, **named: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: padding 0, begin 1, end 2, then the special tokens; named ones are attributes."""
    first = ("<pad>", "<s>", "</s>", *special, *named.values())
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(tuple(dict.fromkeys(first)), adds_begin)),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>", extra_special_tokens=named,
        model_max_length=4096, clean_up_tokenization_spaces=False,
    )


def _ids(words: PreTrainedTokenizerFast) -> dict[str, int]:
    return {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


Made = tuple[Any, PreTrainedTokenizerFast, Any, str | None, dict[str, Any]]  # config, tokenizer, images, template, more


def _qwen(name: str, images: str, **vision: Any) -> Made:
    words = tokenizer(
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    )
    number = words.convert_tokens_to_ids
    config = getattr(transformers, f"{name}Config")(
        text_config=TEXT | _ids(words) | {"rope_parameters": ROPE},
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2} | vision,
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )
    pixels = getattr(transformers, f"{images}ImageProcessorPil")(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}, **PLAIN
    )
    template = QWEN.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return config, words, pixels, template, {}


def qwen2_vl() -> Made:
    return _qwen("Qwen2VL", "Qwen2VL", embed_dim=16, hidden_size=32, mlp_ratio=2)


def qwen2_5_vl() -> Made:
    return _qwen(
        "Qwen2_5_VL", "Qwen2VL", hidden_size=16, intermediate_size=32, out_hidden_size=32, window_size=16,
        fullatt_block_indexes=[1],
    )


def qwen3_vl() -> Made:
    return _qwen(
        "Qwen3VL", "Qwen2VL", hidden_size=16, intermediate_size=32, out_hidden_size=32, deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    )


def internvl() -> Made:
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer("<|im_start|>", "<|im_end|>", **named)
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2"} | TEXT | _ids(words),
        vision_config=TOWER | {"image_size": [28, 28], "patch_size": [7, 7]}, downsample_ratio=0.5,
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
    )
    pixels = transformers.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4, **PLAIN
    )
    return config, words, pixels, QWEN.replace("IMAGE", "<IMG_CONTEXT>\n"), {"image_seq_length": 4}


def _llava(name: str, template: str, tower: dict[str, Any], pixels: Any, more: dict[str, Any], **fields: Any) -> Made:
    words = tokenizer("<|im_start|>", "<|im_end|>", "<image>", "<video>", adds_begin=template is VICUNA)
    config = getattr(transformers, f"{name}Config")(
        text_config={"model_type": "llama"} | TEXT | _ids(words), vision_config=TOWER | tower,
        image_token_index=words.convert_tokens_to_ids("<image>"), **fields,
    )
    return config, words, pixels, template.replace("IMAGE", "<image>\n"), more


def llava() -> Made:
    tower = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7}
    pixels = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **PLAIN
    )
    more = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return _llava("Llava", VICUNA, tower, pixels, more, image_seq_length=16)


def llava_next() -> Made:
    tower = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7}
    grid = [[28, 56], [56, 28], [56, 56]]
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid, **PLAIN
    )
    more = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return _llava("LlavaNext", VICUNA, tower, pixels, more, image_grid_pinpoints=grid, image_seq_length=16)


def llava_onevision() -> Made:
    tower = {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7}
    grid = [[28, 56], [56, 28], [56, 56]]
    pixels = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=grid, **PLAIN
    )
    more = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    return _llava(
        "LlavaOnevision", ONEVISION, tower, pixels, more, image_grid_pinpoints=grid, vision_aspect_ratio="anyres_max_9",
        vision_feature_select_strategy="full", vision_feature_layer=-1,
    )


def _idefics(name: str) -> Made:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(
        "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", *tiles
    )
    config = getattr(transformers, f"{name}Config")(
        text_config={"model_type": "llama"} | TEXT | _ids(words),
        vision_config=TOWER | {"image_size": 28, "patch_size": 7}, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )
    pixels = getattr(transformers, f"{name}ImageProcessorPil")(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True, **PLAIN
    )
    return config, words, pixels, IDEFICS.replace("IMAGE", "<image>"), {"image_seq_len": 4}


def idefics3() -> Made:
    return _idefics("Idefics3")


def smolvlm() -> Made:
    return _idefics("SmolVLM")


def _siglip(**more: Any) -> Any:
    pixels = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28}, **PLAIN)
    for name, value in more.items():
        setattr(pixels, name, value)
    return pixels


def paligemma() -> Made:
    words = tokenizer(image_token="<image>")
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma2", "head_dim": 8, "sliding_window": 4096, "query_pre_attn_scalar": 8}
        | TEXT | _ids(words) | {"vocab_size": len(words) + 1152},
        vision_config=TOWER | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7,
                               "projection_dim": 32},
        image_token_index=words.convert_tokens_to_ids("<image>"), projection_dim=32,
    )
    return config, words, _siglip(image_seq_length=16), None, {}


def gemma3() -> Made:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer("<start_of_turn>", "<end_of_turn>", adds_begin=True, **named)
    number = words.convert_tokens_to_ids
    config = transformers.Gemma3Config(
        text_config=TEXT | _ids(words) | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        vision_config=TOWER | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7},
        mm_tokens_per_image=4, boi_token_index=number("<start_of_image>"), eoi_token_index=number("<end_of_image>"),
        image_token_index=number("<image_soft_token>"),
    )
    pixels = transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, **PLAIN)
    return config, words, pixels, GEMMA.replace("IMAGE", "<start_of_image>"), {"image_seq_length": 4}


def mistral3() -> Made:
    words = tokenizer(
        "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", adds_begin=True
    )
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", "head_dim": 8} | TEXT | _ids(words),
        vision_config=TOWER | {"model_type": "pixtral", "image_size": 56, "patch_size": 7, "head_dim": 8},
        image_token_index=words.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2, vision_feature_layer=-1,
    )
    pixels = transformers.PixtralImageProcessorPil(patch_size=7, size={"longest_edge": 56}, **PLAIN)
    return config, words, pixels, MISTRAL.replace("IMAGE", "[IMG]"), {"patch_size": 7, "spatial_merge_size": 2}


TYPES: dict[str, Callable[[], Made]] = {
    "gemma3": gemma3, "idefics3": idefics3, "internvl": internvl, "llava": llava, "llava_next": llava_next,
    "llava_onevision": llava_onevision, "mistral3": mistral3, "paligemma": paligemma, "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl, "qwen3_vl": qwen3_vl, "smolvlm": smolvlm,
}


def write(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random checkpoint folder of a type, as transformers would save it.

    Args:
        kind: a key of TYPES.
        folder: destination.
        dtype: of its weights.

    Returns:
        The folder.
    """
    config, words, pixels, template, more = TYPES[kind]()
    torch.manual_seed(7)
    with quiet():
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        # The default range of 0.02 gives answers that hardly depend on the input at this width.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "norm" not in name:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.to(dtype).save_pretrained(folder)
        words.chat_template = template
        words.save_pretrained(folder)
        pixels.save_pretrained(folder)
    settings = {"processor_class": PROCESSOR_MAPPING[type(config)].__name__, **more}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def spec(kind: str, folder: Path, **changes: Any) -> ModelSpec:
    """Return the spec of a folder made by write."""
    fields = {
        "id": f"{kind}_tiny", "name": f"Tiny {kind}", "family": "auto", "checkpoint": str(folder),
        "preprocess": "processor", "max_length": 1024, "learning_rate": 1e-3, "projector_learning_rate": 5e-4,
    }
    return ModelSpec(**(fields | changes))


def load(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> LoadedModel:
    """Load a folder made by write."""
    return benchmark.models.load(spec(kind, folder, **changes), dtype)

