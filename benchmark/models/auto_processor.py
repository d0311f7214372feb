"""The processor of any checkpoint, with its image settings and its conversation, without the parts for videos."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from benchmark.core.errors import UserError, shorten
from benchmark.models.checkpoint_files import FIX
from benchmark.models.folder import quiet

if TYPE_CHECKING:
    from benchmark.spec import ModelSpec

# The day that a template which asks for the date gets, so that a conversation is the same on every day.
DAY = datetime(2024, 7, 26)
_CLOCK = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")
# Types whose processor makes prompt and answer by itself, so that they need no chat template.
PREFIX_SUFFIX = ("paligemma",)
SAMPLE = "Rhododendron"  # an answer that no template contains
Setter = Callable[[Any, Any], None]


def _size(key: str) -> Setter:
    def set_it(images: Any, value: int) -> None:
        images.size = dict(images.size) | {key: value}

    return set_it


def _field(name: str) -> Setter:
    def set_it(images: Any, value: Any) -> None:
        setattr(images, name, value)

    return set_it


# model_type -> setting of the model's YAML file -> how the image processor takes it.
_GRID: Mapping[str, Setter] = {"min_pixels": _size("shortest_edge"), "max_pixels": _size("longest_edge")}
_SPLIT: Mapping[str, Setter] = {"longest_edge": _size("longest_edge"), "split_images": _field("do_image_splitting")}
IMAGE_SETTINGS: Mapping[str, Mapping[str, Setter]] = {
    "gemma3": {"split_images": _field("do_pan_and_scan")},
    "idefics3": _SPLIT,
    "internvl": {"max_tiles": _field("max_patches"), "split_images": _field("crop_to_patches")},
    "mistral3": {"longest_edge": _size("longest_edge")},
    "qwen2_5_vl": _GRID,
    "qwen2_vl": _GRID,
    "qwen3_vl": _GRID,
    "smolvlm": _SPLIT,
}
SETTINGS = ("min_pixels", "max_pixels", "longest_edge", "max_tiles", "split_images")


def load_processor(path: Path, config: PreTrainedConfig, spec: ModelSpec) -> ProcessorMixin:
    """Return the processor of a checkpoint for texts and images.

    Images are read by the PIL backend, whatever is installed, so that a key stands for the same pixels everywhere.
    Videos are not read, so a missing package that only videos need is no fault.

    Args:
        path: has tokenizer files and preprocessor_config.json or processor_config.json.
        config: the model's.
        spec: its image settings.

    Raises:
        UserError: a file is missing or invalid, a package is missing, or the type has no such image setting.
    """
    kind = config.model_type
    if type(config) not in PROCESSOR_MAPPING:
        raise UserError(f"transformers has no processor for model_type={kind} ({path}). Use a family that it has.")
    if not any((path / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise UserError(
            f"{path} has no processor: neither processor_config.json nor preprocessor_config.json. {FIX}"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{path} has no tokenizer: neither tokenizer.json nor tokenizer.model. {FIX}")
    base: type[ProcessorMixin] = PROCESSOR_MAPPING[type(config)]  # type: ignore[assignment]  # declared for pairs
    try:
        with quiet(), _without_video_packages(base):
            processor = _build(base, path)
    except ImportError as error:
        package = next((name for name in ("torchvision", "sentencepiece", "num2words", "timm")
                        if name in str(error).lower()), None)
        raise UserError(
            f"model_type={kind} cannot be used here: its processor {base.__name__} needs "
            + (f"the package {package}, which is not installed." if package else shorten(str(error).strip(), 200))
        ) from None
    except UserError:
        raise
    except Exception as error:  # configurations of processors fail in all kinds of ways
        raise UserError(
            f"The processor in {path} does not load: {type(error).__name__}: {shorten(str(error), 200)}. {FIX}"
        ) from error
    _settle_images(processor, kind, spec)
    return processor


def _build(base: type[ProcessorMixin], path: Path) -> ProcessorMixin:
    check = base.check_argument_for_proper_class

    def check_all_but_video(self: ProcessorMixin, argument_name: str, argument: Any) -> Any:
        """Accept a processor without its video part, which needs torchvision."""
        return type(argument) if argument_name == "video_processor" else check(self, argument_name, argument)

    settings, _ = base.get_processor_dict(path, local_files_only=True)
    parts = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(path, local_files_only=True),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True),
        "video_processor": lambda: SimpleNamespace(model_input_names=[]),
    }
    attributes = base.get_attributes()
    unknown = [name for name in attributes if name not in parts]
    if unknown:
        raise UserError(
            f"The processor {base.__name__} of {path} has a part {unknown[0]}, which is neither text nor image. Use a "
            "model of images and text."
        )
    accepted = inspect.signature(base.__init__).parameters.keys() - attributes
    made = {name: parts[name]() for name in attributes}
    with mock.patch.object(base, "check_argument_for_proper_class", check_all_but_video):
        return base(**made, **{name: value for name, value in settings.items() if name in accepted})


def _without_video_packages(base: type[ProcessorMixin]) -> AbstractContextManager[Any]:
    """Let a processor start without num2words, which spells the lengths of videos."""
    module = importlib.import_module(base.__module__)
    if getattr(module, "num2words", True) is None:
        return mock.patch.object(module, "num2words", str)
    return nullcontext()


def _settle_images(processor: ProcessorMixin, kind: str, spec: ModelSpec) -> None:
    """Give the image processor the settings of the model's YAML file.

    Raises:
        UserError: the type has no such setting, or min_pixels exceeds max_pixels.
    """
    known = IMAGE_SETTINGS.get(kind, {})
    for name in SETTINGS:
        value = getattr(spec, name)
        if value is None:
            continue
        if name not in known:
            has = f"It has {', '.join(known)}." if known else "It has none."
            raise UserError(f"model.{name}={value}: images of model_type={kind} have no such setting. {has}")
        known[name](processor.image_processor, value)
    if spec.min_pixels and spec.max_pixels and spec.min_pixels > spec.max_pixels:
        raise UserError(
            f"model.min_pixels={spec.min_pixels} is more than model.max_pixels={spec.max_pixels}. Swap them."
        )


@dataclass(frozen=True)
class Conversation:
    """How prompts and answers become one text.

    Args:
        processor: applies the template.
        template: the checkpoint's Jinja template on a fixed day; None for a type of PREFIX_SUFFIX.
        end: text of the token that ends an answer.
        space: white space that the template puts before an answer, after the prompt that generation continues.
    """

    processor: ProcessorMixin
    template: str | None
    end: str
    space: str = ""

    def render(self, prompt: str, answer: str | None, has_image: bool) -> str:
        """Return the conversation as the processor takes it; it ends where the answer begins, or in the end token.

        A training sample is the prompt that generation continues, the answer and the end token.

        Args:
            prompt: the user's text.
            answer: the answer; None for the prompt that generation continues.
            has_image: whether an image precedes the text.
        """
        prompt = self.plain(prompt)
        if self.template is None:
            return (self.processor.image_token if has_image else "") + prompt  # type: ignore[attr-defined]  # of its class
        question = self._apply(prompt, None, has_image)
        return question if answer is None else question + self.space + self.plain(answer) + self.end

    def plain(self, text: str) -> str:
        """Return a dataset's text without what the tokenizer would read as a special token: `</s>` becomes `< /s>`."""
        text = text.strip()
        for token in self.special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @cached_property
    def special(self) -> tuple[str, ...]:
        """Texts of the tokenizer's special tokens."""
        tokenizer = self.processor.tokenizer
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(dict.fromkeys((*tokenizer.all_special_tokens, *added)))

    @cached_property
    def _begin(self) -> str:
        """The begin token, if the tokenizer adds it by itself: a template's own would make two."""
        tokenizer = self.processor.tokenizer
        return tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("a").input_ids[:1] else ""

    def with_ends(self, path: Path) -> Conversation:
        """Return the conversation with the white space and the end token that its template writes around an answer.

        Raises:
            UserError: the template does not say where an answer begins or ends.
        """
        question = self._apply("Q", None, True)
        before, found, rest = self._apply("Q", SAMPLE, True).partition(SAMPLE)
        # Some templates differ by white space here (LLaVA-OneVision): what generation continues is what trains.
        if not found or before.split() != question.split():
            raise UserError(
                f"The chat template of {path} writes the prompt that generation continues otherwise than the prompt of "
                "a finished conversation, so an answer cannot be supervised alone. Use a template that does not."
            )
        space = before[len(question) :] if before.startswith(question) else ""
        if not rest.strip():
            return replace(self, space=space)
        tokens = [token for token in self.special if rest.lstrip().startswith(token)]
        if not tokens:
            raise UserError(
                f"The chat template of {path} ends an answer with {shorten(rest, 30)!r}, which is no special token of "
                "its tokenizer, so answers would have no end. Use a template that ends them with one."
            )
        return replace(self, end=max(tokens, key=len), space=space)

    def _apply(self, prompt: str, answer: str | None, has_image: bool) -> str:
        content = [{"type": "text", "text": prompt}]
        messages: list[Any] = [{"role": "user", "content": [{"type": "image"}] * has_image + content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        # Of the mixin: some classes have their own for videos.
        return ProcessorMixin.apply_chat_template(
            self.processor, messages, chat_template=self.template, add_generation_prompt=answer is None
        ).removeprefix(self._begin)


def load_conversation(processor: ProcessorMixin, kind: str, path: Path) -> Conversation:
    """Return a checkpoint's conversation.

    Raises:
        UserError: there is no chat template, it asks for the date in a way that cannot be fixed, or it does not say
            where an answer begins and ends.
    """
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer in {path} has no end token. {FIX}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if kind in PREFIX_SUFFIX:
        return Conversation(processor, None, tokenizer.eos_token)
    template = processor.chat_template or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError(
            f"{path} has no chat template, so it is a base model: its prompt is unknown. Use its instruction-tuned "
            "version, or put a chat_template.jinja beside it."
        )
    return Conversation(processor, on_one_day(template, path), tokenizer.eos_token).with_ends(path)


def on_one_day(template: str, path: Path) -> str:
    """Return a chat template that gives the same text on every day.

    Raises:
        UserError: it computes the date in a way that cannot be replaced.
    """
    fixed = _CLOCK.sub(lambda match: repr(DAY.strftime(match[2])), template)
    if re.search(r"strftime_now\s*\(", fixed):
        raise UserError(
            f"The chat template of {path} writes today's date in a format that is computed, so prompts would differ "
            "from day to day. Put a chat_template.jinja without a date beside the checkpoint."
        )
    return fixed
