"""Greedy generation in batches of similar length, left padded. Answers are appended to a JSONL file; it can resume."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.data.record import Record
from benchmark.models import LoadedModel
from benchmark.models.batch import READ_SECONDS, Item, Items, collate, split_image, split_start, start_cache
from benchmark.models.prompt import render
from benchmark.spec import DatasetSpec

Progress = Callable[[int, int], None]


class NotANumber(RuntimeError):
    """The model's output overflowed. NaN has no largest logit, so an answer would be scored that means nothing."""


class _Watch(LogitsProcessor):
    """Notes the rows whose logits are NaN at some token. Read once per batch, because reading waits for the device."""

    def __init__(self) -> None:
        self.bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        now = scores.isnan().any(-1)
        self.bad = now if self.bad is None else self.bad | now
        return scores


class _Stop(StoppingCriteria):
    """Ends rows whose answer has a stop string; notes their number of tokens before the one that completed it.

    Args:
        tokenizer: the model's.
        stop: the stop strings.
        start: number of tokens of the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.tokens: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        # Text, not ids: a stop string may consist of several tokens, or of a part of one.
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        for row, text in enumerate(texts):
            if before_stop(text, self.stop) != text.lstrip():
                self.tokens.setdefault(row, input_ids.shape[1] - self.start - 1)
        return torch.tensor([row in self.tokens for row in range(len(texts))], device=input_ids.device)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return the part of an answer before the first stop string, without leading white space.

    White space is removed first, so that an empty line at the beginning does not end an answer.
    """
    text = text.lstrip()
    return min((text.partition(word)[0] for word in stop), key=len, default=text)


def generate(
    loaded: LoadedModel,
    records: Sequence[Record],
    spec: DatasetSpec,
    out_jsonl: Path,
    batch_size: int,
    on_progress: Progress | None = None,
    share_images: bool = False,
) -> None:
    """Answer every record that the file has no answer to.

    Batches are cut from all records, including answered ones, sorted by prompt length. An interrupted run and an
    uninterrupted run therefore give the model the same batches.

    Args:
        loaded: the model with the weights to evaluate.
        records: the questions; targets are not read.
        spec: has max_new_tokens and the stop strings.
        out_jsonl: one line per item: item_id, prompt_hash, text, n_tokens (without the token that ends the answer).
        batch_size: items per forward pass.
        on_progress: callback (answered items, total), called after each batch.
        share_images: run an image once for all questions on it.

    Raises:
        UserError: images are missing or corrupt (the message counts them), item ids are not unique, a prompt is too
            long, or the file cannot be written.
    """
    hashes = {record.item_id: prompt_hash(record) for record in records}
    if len(hashes) != len(records):
        doubled = len(records) - len(hashes)
        raise UserError(f"Dataset {spec.id} has {doubled} duplicate item ids. Draw or fetch it again.")
    answered = _resume(out_jsonl, hashes)
    if len(answered) == len(records):
        return
    items = Items(loaded, records, supervised=False)
    limit = loaded.model.config.get_text_config().max_position_embeddings
    longest = max(len(ids) for ids, _ in items.encoded)
    if longest + spec.max_new_tokens > limit:
        raise UserError(
            f"A prompt of {longest} tokens plus max_new_tokens={spec.max_new_tokens} of dataset {spec.id} exceeds "
            f"the model's {limit} positions. Lower max_new_tokens or shorten the prompts."
        )
    # Longest first: a batch too large for memory fails at once, and the estimated time left is not too low.
    lengths = [len(ids) for ids, _ in items.encoded]
    if share_images and loaded.inputs is not None:
        share_images = False
        _say_once("eval.share_images: this family runs an image again for each of its questions. Answers are the same.")
    batches = cut(lengths, [record.image if share_images else None for record in records], batch_size)
    batches = [batch for batch in batches if not all(records[index].item_id in answered for index in batch)]
    loader: DataLoader[Item] = DataLoader(
        items,  # type: ignore[arg-type]  # __len__ and __getitem__ are all that it needs
        batch_sampler=batches, collate_fn=list, num_workers=items.workers,
        timeout=READ_SECONDS if items.workers else 0,
    )
    loaded.model.eval()
    with _append(out_jsonl) as file:
        for indices, batch in zip(batches, loader, strict=True):
            one_image = share_images and len({records[index].image for index in indices} - {None}) == 1 < len(batch)
            one_image = one_image and all(item.image is not None for item in batch)
            texts = answer_batch(loaded, batch, spec.max_new_tokens, one_image, spec.stop)
            lines = []
            for item, (text, n_tokens) in zip(batch, texts, strict=True):
                if item.item_id not in answered:
                    answered.add(item.item_id)
                    row = {"item_id": item.item_id, "prompt_hash": hashes[item.item_id], "text": text}
                    lines.append(json.dumps(row | {"n_tokens": n_tokens}) + "\n")
            try:
                file.write("".join(lines))
                file.flush()
            except OSError as error:
                raise UserError(f"Cannot write {out_jsonl}: {error.strerror}. Free some space.") from None
            if on_progress is not None:
                on_progress(len(answered), len(records))


def cut(lengths: Sequence[int], images: Sequence[Path | None], batch_size: int) -> list[list[int]]:
    """Cut items into batches, those with the longest prompt first.

    Args:
        lengths: lengths of the prompts, in tokens.
        images: items with the same image get their own batches; an item with None may be with any other.
        batch_size: largest number of items.

    Returns:
        Indices of each batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: dict[Path | None, list[int]] = {None: []}
    counts = Counter(images)
    for index in order:
        image = images[index] if counts[images[index]] > 1 else None
        groups.setdefault(image, []).append(index)
    chunks = [
        group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
    ]
    return sorted(chunks, key=lambda chunk: (-lengths[chunk[0]], chunk[0]))


@torch.inference_mode()
def answer_batch(
    loaded: LoadedModel, items: Sequence[Item], max_new_tokens: int, one_image: bool = False, stop: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Answer some items in one batch.

    Args:
        loaded: the model, in evaluation mode.
        items: encoded without target.
        max_new_tokens: longest answer, in tokens.
        one_image: whether all items have the same image, which is then run once.
        stop: strings that end an answer, in addition to the end token.

    Returns:
        (text, number of tokens without the one that ended it) for each item.

    Raises:
        NotANumber: names the items.
    """
    model = loaded.model
    # Every item has the same system prompt. It is a third of the work if prompts are short, so run it once.
    shared, rest = split_image(loaded, items) if one_image else split_start(loaded, items)
    pixels = collate(loaded, items[:1], "left")["pixel_values"].to(model.device, model.dtype) if one_image else None
    start = torch.tensor([shared], dtype=torch.long, device=model.device)
    batch = {key: value.to(model.device) for key, value in collate(loaded, rest, "left").items()}
    starts = start.expand(len(items), -1)
    positions = torch.arange(len(shared), device=model.device).expand(len(items), -1)
    inputs = {
        "input_ids": torch.cat([starts, batch["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(starts), batch["attention_mask"]], dim=1),
    }
    if "position_ids" in batch:
        inputs["position_ids"] = torch.cat([positions, batch["position_ids"] + len(shared)], dim=1)
    for name, value in batch.items():
        if name not in ("labels", "input_ids", "attention_mask", "position_ids"):
            inputs[name] = value.to(model.dtype) if value.is_floating_point() else value
    watch, ended = _Watch(), _Stop(loaded.tokenizer, stop, inputs["input_ids"].shape[1])
    output = model.generate(  # type: ignore[operator]  # of GenerationMixin, which PreTrainedModel need not have
        **inputs,
        logits_processor=LogitsProcessorList([watch]),
        stopping_criteria=StoppingCriteriaList([ended] if stop else []),
        past_key_values=start_cache(model, start, len(items), pixels) if shared else None,
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=loaded.eos_token_id,
            pad_token_id=loaded.pad_token_id,
            bos_token_id=loaded.tokenizer.bos_token_id,
        ),
    )
    lost = [
        item.item_id
        for item, bad in zip(items, watch.bad.tolist(), strict=True)  # type: ignore[union-attr]  # generate called it
        if bad
    ]
    if lost:
        raise NotANumber(
            f"The model's output is not a number for {len(lost)} items, {', '.join(lost[:20])}. Its weights or its "
            "activations overflow: check the checkpoint, try eval.dtype=bfloat16 or float32, or lower "
            "train.learning_rate."
        )
    answers = []
    for index, row in enumerate(output[:, ended.start :].tolist()):
        ids = row[: row.index(loaded.eos_token_id)] if loaded.eos_token_id in row else row
        text = before_stop(
            loaded.tokenizer.decode(ids, skip_special_tokens=True),  # type: ignore[arg-type]  # one list, so one text
            stop,
        )
        answers.append((text.strip(), ended.tokens.get(index, len(ids))))
    return answers


@functools.cache
def _say_once(text: str) -> None:
    print(text, flush=True)


def prompt_hash(record: Record) -> str:
    """Return a short hash of the prompt string that the model continues."""
    text = render(record.prompt, None, record.image is not None)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resume(path: Path, hashes: dict[str, str]) -> set[str]:
    """Return the ids with an answer in the file; remove incomplete lines and answers to other prompts from it."""
    if not path.is_file():
        return set()
    text = path.read_text(encoding="utf-8", errors="replace")
    kept: dict[str, str] = {}
    for line in text.split("\n"):
        try:
            row = json.loads(line)
            if hashes.get(row["item_id"]) == row["prompt_hash"] and isinstance(row["text"], str):
                kept.setdefault(row["item_id"], line)
        except (ValueError, KeyError, TypeError):  # a line that a kill or a full disk cut off
            continue
    clean = "".join(f"{line}\n" for line in kept.values())
    if clean != text:
        write_atomic(path, clean)
    return set(kept)


def _append(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror}. Choose another folder (RESULTS=dir)."
        ) from None
