"""Training of the language stage, and of the whole small model in all stages with conversations."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmark.models.prompt import IGNORE
from benchmark.pocket.pretrain import group
from benchmark.pocket.pretrain.corpus import Conversation, conversations, text_ids
from benchmark.pocket.pretrain.family import Family, Part, Size
from benchmark.pocket.pretrain.stages import Stage
from benchmark.pocket.pretrain.state import Replica, Schedule, resume, save, update
from benchmark.pocket.pretrain.tower import HEADS
from benchmark.pocket.world.scene import COLUMNS, ROWS
from benchmark.pocket.world.words import LETTERS, SIGN_WORDS

PACKED = "packed"
"""Name of `attend` among the attention implementations of transformers."""
Log = Callable[[str], None]
Row = tuple[list[int], list[int], list[Any], list[int]]
"""input_ids, labels, positions and branch numbers of a packed conversation, from `pack`."""


def _texts(
    tokenizer: PreTrainedTokenizerBase, seed: int, first: int, steps: int, batch: int, length: int
) -> Iterator[Tensor]:
    """Yield this process's share of the language stage's batches, a pure function of (seed, step)."""
    for step in range(first, steps):
        stream = text_ids(tokenizer, f"language/{seed}/{step}", length)
        yield torch.tensor(group.share(itertools.islice(stream, batch)))


def train_language(
    llm: Part, tokenizer: PreTrainedTokenizerBase, out: Path, steps: int, seed: int, log: Log,
    batch: int = 64, length: int = 96, learning_rate: float = 2e-3, save_every: int = 50,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Train the language model on text alone. Every token of the vocabulary is a label many times."""
    torch.manual_seed(seed)
    parameters = list(llm.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = Schedule(learning_rate, steps, warmup=50)
    first = resume(out, {"llm": llm}, optimizer)
    llm.train()
    low = Replica({"llm": llm}, dtype)
    for step, ids in enumerate(_texts(tokenizer, seed, first, steps, batch, length), first):
        schedule.apply(optimizer, step)
        loss = low.parts["llm"](input_ids=ids, labels=ids, use_cache=False).loss * (len(ids) / batch)
        update(loss, parameters, optimizer, low)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(out, {"llm": llm}, optimizer, step + 1)
            log(f"language step {step + 1}/{steps} loss {group.total(loss.item()):.3f}")


OPTION_BLOCK, WORD_BLOCK, POINTER_BLOCK = 4, 5, 7
"""Blocks (of 8, counted from 1) that inner labels supervise, see `Inner`."""
ROW_BLOCK, COLUMN_BLOCK = 2, 3
"""The same for the cell of each image token, see `Parts.loss`."""


class Inner:
    """Labels for blocks below the last one, in texts with lettered options.

    A block can look up a letter only if its input already tells the option's word. So where the answer is a letter, the
    output of block WORD_BLOCK must predict the first word of the option that the letter stands for. The letter must
    also be there to find: at the first word of each option, the output of block OPTION_BLOCK must predict the option's
    letter. Finally, the first attention head of block POINTER_BLOCK must attend from the answer to that first word.

    Args:
        tokenizer: has one token for each letter and one for the full stop after it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.letters = {tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in LETTERS}
        self.stop = tokenizer(".", add_special_tokens=False).input_ids[-1]

    def labels(self, ids: list[int], wanted: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return (due, words, pointers, options), each as long as ids and IGNORE elsewhere.

        Args:
            ids: tokens of one turn.
            wanted: its labels.

        Returns:
            due: the letter, where the label is a letter; words: there, the first word of its option; pointers: there,
            that word's position in the turn; options: the letter of each option, at the option's first word.
        """
        due, words, pointers, options = ([IGNORE] * len(ids) for _ in range(4))
        first: dict[int, int] = {}
        for place, (letter, stop) in enumerate(zip(ids, ids[1:], strict=False)):
            if letter in self.letters and stop == self.stop and wanted[place] == IGNORE and place + 2 < len(ids):
                first[letter] = place + 2
                options[place + 2] = letter
        for place, label in enumerate(wanted):
            if label in first:
                due[place], words[place], pointers[place] = label, ids[first[label]], first[label]
        return due, words, pointers, options


class Packed:
    """A batch of conversations one after another in a single row, so that nothing is spent on padding.

    A token attends only to tokens of its own conversation; there, a turn attends to the prefix (system text and image)
    and to itself, with the positions that it would have alone. This gives the same numbers as one conversation per
    turn, for a third of the work.

    Args:
        rows: from `pack`.
        pixels: of the pictures, in the order of the rows that have one; None without pictures.
        pad: padding token.
        inner: adds inner labels; if None, so are `due`, `words`, `pointers` and `options`.
        cells: words for row and column of each image token, (image tokens, 2); None adds no such labels.
    """

    def __init__(
        self,
        rows: list[Row],
        pixels: Any,
        pad: int,
        inner: Inner | None = None,
        cells: Tensor | None = None,
    ) -> None:
        lengths = [len(ids) for ids, *_ in rows]
        starts = list(itertools.accumulate(lengths, initial=0))
        # Filled up to have few lengths: torch keeps a compiled matrix product for every shape it has seen.
        spare = -starts[-1] % 64
        self.pixels, self.cells = pixels, cells

        def joined(parts: Iterable[Sequence[Any]], fill: Any) -> Tensor:
            return torch.tensor([[*itertools.chain.from_iterable(parts), *[fill] * spare]])

        self.input_ids = joined((ids for ids, *_ in rows), pad)
        self.labels = joined((labels for _, labels, *_ in rows), IGNORE)
        positions = joined((places for _, _, places, _ in rows), rows[0][2][0])  # a number, or one for each axis
        self.positions = positions if positions.ndim == 2 else positions.movedim(-1, 0)
        self.conversation = torch.repeat_interleave(torch.tensor([*lengths, spare]))
        self._branch = joined((branches for *_, branches in rows), 0)[0]
        self.lengths = lengths + [spare] * (spare > 0)
        self.allowed = [self.seen(part, part) for part in torch.arange(len(self.conversation)).split(self.lengths)]
        self.due = self.words = self.pointers = self.options = None
        if inner is not None:
            labels = [_inner_row(row, inner, start) for row, start in zip(rows, starts, strict=False)]
            self.due, self.words, self.pointers, self.options = (
                joined((row[k] for row in labels), IGNORE) for k in range(4)
            )

    def seen(self, places: Tensor, among: Tensor | None = None) -> Tensor:
        """Return which tokens the tokens at some places attend to, bool (places, all tokens or those `among`)."""
        keys = torch.arange(len(self.conversation)) if among is None else among
        branch, conversation = self._branch[keys], self.conversation[keys]
        own = (branch == self._branch[places][:, None]) | (branch == 0)
        return (keys <= places[:, None]) & (conversation == self.conversation[places][:, None]) & own


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, masks: Sequence[Tensor],
    **settings: Any,
) -> tuple[Tensor, None]:
    """Return the attention of conversations in one row, (1, tokens, heads, width): that of each, one after another.

    Args:
        module: the attention.
        query: (1, heads, tokens, width).
        key: the same, perhaps with fewer heads.
        value: the same.
        attention_mask: unused.
        masks: for each conversation what is added to its scores, (its tokens, its tokens).
        settings: for `sdpa_attention_forward`.
    """
    lengths = [len(mask) for mask in masks]
    parts = zip(*(states.split(lengths, 2) for states in (query, key, value)), masks, strict=True)
    found = [sdpa_attention_forward(module, q, k, v, mask[None, None], **settings)[0] for q, k, v, mask in parts]
    return torch.cat(found, 1), None


AttentionInterface.register(PACKED, attend)


@contextlib.contextmanager
def _packed(decoder: Part) -> Iterator[None]:
    """Let a decoder use `attend`."""
    usual = decoder.config._attn_implementation
    decoder.config._attn_implementation = PACKED
    try:
        yield
    finally:
        decoder.config._attn_implementation = usual


def _inner_row(row: Row, inner: Inner, start: int) -> list[list[int]]:
    """Return the inner labels of a conversation that starts somewhere. A letter refers to options of its own turn."""
    ids, labels, _, branches = row
    result: list[list[int]] = [[], [], [], []]
    for branch in range(max(branches) + 1):
        places = [place for place, number in enumerate(branches) if number == branch]
        due, words, pointers, options = inner.labels([ids[p] for p in places], [labels[p] for p in places])
        pointers = [place if place == IGNORE else start + places[place] for place in pointers]
        for whole, part in zip(result, (due, words, pointers, options), strict=True):
            whole += part
    return result


def pack(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, family: Family, size: Size | None) -> Row:
    """Return input_ids, labels, positions and branch numbers (0 for the shared prefix) of one conversation.

    Args:
        conversation: a picture, or none, and turns.
        tokenizer: the family's.
        family: makes ids and positions of each turn.
        size: of the picture; None without one.
    """
    ids: list[int] = []
    labels: list[int] = []
    positions: list[Any] = []
    branches: list[int] = []
    image_token_id, start = family.image_token_id(tokenizer), 0
    for number, turn in enumerate(conversation.turns, 1):
        tokens, wanted = family.encode(tokenizer, turn.prompt, turn.answer, size)
        places = family.positions(tokens, image_token_id, size)
        if number == 1:
            start = max(i for i, t in enumerate(tokens) if t == image_token_id) + 1 if size else 1
            ids, labels = tokens[:start], wanted[:start]
            positions, branches = places[:start], [0] * start
        ids += tokens[start:]
        labels += wanted[start:]
        positions += places[start:]
        branches += [number] * (len(tokens) - start)
    return ids, labels, positions, branches


def _cost(conversation: Conversation) -> int:
    """Return about what a conversation costs, in characters; its system text and its picture cost a hundred each."""
    texts = sum(len(turn.prompt) + len(turn.answer) for turn in conversation.turns)
    return texts + (200 if conversation.picture else 100)


def batches(
    family: Family, tokenizer: PreTrainedTokenizerBase, seed: int, stage: Stage, first: int, steps: int,
    prompts: dict[str, str],
) -> Iterator[Packed]:
    """Yield this process's share of a stage's batches, a pure function of (seed, stage, step).

    Args:
        family: the model's.
        tokenizer: the family's.
        seed: of the conversations.
        stage: what they are.
        first: step of the first batch.
        steps: of the whole stage.
        prompts: dataset id -> prompt template.
    """
    inner = Inner(tokenizer) if stage.inner else None
    words = [first_tokens(tokenizer, names) for names in (ROWS, COLUMNS)] if stage.cells else []
    stream = conversations(seed, stage, prompts)
    for step in range(steps):
        batch = list(itertools.islice(stream, stage.pictures or family.batch))
        if step < first:
            continue
        chosen = group.share(batch, _cost)
        drawn = [None if c.picture is None else c.picture.draw(random.Random(c.seed)) for c in chosen]
        images = [image for image in drawn if image is not None]
        rows = [
            pack(c, tokenizer, family, None if image is None else image.size)
            for c, image in zip(chosen, drawn, strict=True)
        ]
        cells = None
        if words:
            places = [cell for image in images for cell in family.grid(image.size).cells()]
            numbers = torch.tensor(places, dtype=torch.long).view(-1, len(words))
            cells = torch.stack([names[axis] for names, axis in zip(words, numbers.unbind(1), strict=True)], dim=1)
        yield Packed(rows, family.pixels(images) if images else None, tokenizer.pad_token_id, inner, cells)


class Parts:
    """A model's components, under the same names for all families.

    Args:
        model: the whole model.
        family: its family.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model, self.family = model, family
        self.kinds: Mapping[str, Tensor] = {}
        self.hits: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
        self.tower, self.projector, self.decoder, self.head = family.modules(model)
        self.image_token_id: int = model.config.image_token_id
        self.end_token_id = self.decoder.config.eos_token_id

    def image_tokens(self, pixels: Any, dtype: torch.dtype) -> Tensor:
        """Return the image tokens of pictures, (..., width). The tower gets no gradient."""
        with torch.no_grad():
            features = self.family.features(self.tower, pixels, dtype)
        return self.family.project(self.projector, features)

    def loss(self, batch: Packed) -> Tensor:
        """Return the mean cross-entropy over the supervised tokens of a packed batch, or this process's part of it.

        With inner labels it is the sum of five means: letters, all other supervised tokens (so letters weigh as much as
        everything else), and the words, pointers and options of `Inner`. With cells it is the sum of three: at each
        image token, the output of ROW_BLOCK must predict the word for the row that the token is in, and that of
        COLUMN_BLOCK the word for its column.
        """
        is_image = batch.input_ids == self.image_token_id
        embeds = self.decoder.embed_tokens(batch.input_ids.masked_fill(is_image, 0))
        if batch.pixels is not None:
            embeds = embeds.masked_scatter(is_image[..., None], self.image_tokens(batch.pixels, embeds.dtype))
        least = torch.finfo(embeds.dtype).min
        masks = [torch.zeros(seen.shape, dtype=embeds.dtype).masked_fill(~seen, least) for seen in batch.allowed]
        with _packed(self.decoder):
            output = self.decoder(
                inputs_embeds=embeds, position_ids=batch.positions, use_cache=False, masks=masks,
                output_hidden_states=batch.due is not None or batch.cells is not None,
            )
        last = output.last_hidden_state[:, :-1]
        wanted = batch.labels[:, 1:]
        if batch.due is None:
            loss = self._entropy(last, wanted, self._count_words)
            if batch.cells is not None:
                for block, words in zip((ROW_BLOCK, COLUMN_BLOCK), batch.cells.unbind(1), strict=True):
                    loss = loss + self._cell(self.decoder.norm(output.hidden_states[block][is_image]), words)
            return loss
        assert batch.words is not None and batch.options is not None
        is_letter = batch.due[:, 1:] != IGNORE
        middle = self.decoder.norm(output.hidden_states[WORD_BLOCK])[:, :-1]
        earlier = self.decoder.norm(output.hidden_states[OPTION_BLOCK])
        self._count_letters(batch, last, middle)
        return (
            self._entropy(last, wanted.masked_fill(is_letter, IGNORE))
            + self._entropy(last, batch.due[:, 1:])
            + self._entropy(middle, batch.words[:, 1:])
            + self._pointing(output.hidden_states[POINTER_BLOCK - 1], batch)
            + self._entropy(earlier, batch.options)
        )

    def _entropy(
        self, hidden: Tensor, wanted: Tensor, seen: Callable[[Tensor, Tensor], None] = lambda scores, wanted: None
    ) -> Tensor:
        """Return the mean cross-entropy of the output layer; 0 if no label is set.

        Args:
            hidden: (batch, length, width).
            wanted: (batch, length).
            seen: is called with the output layer's scores and the labels, (tokens, words) and (tokens,).
        """
        keep = wanted != IGNORE
        scores = self.head(hidden[keep]).float()
        seen(scores.detach(), wanted[keep])
        return _cross_entropy(scores, wanted[keep])

    def _cell(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Return the mean cross-entropy of the output layer on image tokens (tokens, width), and count in `hits`."""
        scores = self.head(hidden)
        self._count("cell", scores.argmax(-1) == words)
        return _cross_entropy(scores.float(), words)

    def _pointing(self, hidden: Tensor, batch: Packed) -> Tensor:
        """Return the mean cross-entropy of the attention of POINTER_BLOCK's first head, from each letter's position.

        Args:
            hidden: input of the block, (batch, length, width).
            batch: with inner labels.
        """
        assert batch.pointers is not None
        block = self.decoder.layers[POINTER_BLOCK - 1]
        attention = block.self_attn
        states = block.input_layernorm(hidden)
        cos, sin = self.decoder.rotary_emb(states, batch.positions)
        query, key = (
            project(states)[..., : attention.head_dim][:, None] for project in (attention.q_proj, attention.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        (places,) = (batch.pointers[0, 1:] != IGNORE).nonzero(as_tuple=True)
        scores = (query[0, 0, places] @ key[0, 0].T).float() * attention.scaling
        scores = scores.masked_fill(~batch.seen(places), -torch.inf)
        return _cross_entropy(scores, batch.pointers[0, places + 1])

    def _count_words(self, scores: Tensor, wanted: Tensor) -> None:
        """Count in `hits` how many words of each of `kinds` are right."""
        if not self.kinds:
            return
        right = scores.argmax(-1) == wanted
        for kind, ids in self.kinds.items():
            self._count(kind, right[torch.isin(wanted, ids)])

    @torch.no_grad()
    def _count_letters(self, batch: Packed, last: Tensor, middle: Tensor) -> None:
        """Count in `hits` how many letters are right, by source and kind, and how many words WORD_BLOCK predicts."""
        assert batch.due is not None and batch.words is not None
        due, words = batch.due[:, 1:], batch.words[:, 1:]
        keep = due != IGNORE
        right = self.head(last[keep]).argmax(-1) == due[keep]
        end = F.pad(batch.labels, (0, 1), value=IGNORE)[:, 2:]
        single = (end == self.end_token_id)[keep]
        shown = batch.conversation[batch.input_ids[0] == self.image_token_id]
        picture = torch.isin(batch.conversation[None, :-1], shown)[keep]
        for kind, hits in (
            ("text list", right[~picture & ~single]),
            ("text single", right[~picture & single]),
            ("picture list", right[picture & ~single]),
            ("picture single", right[picture & single]),
            ("picture word", (self.head(middle[keep]).argmax(-1) == words[keep])[picture]),
        ):
            self._count(kind, hits)

    def _count(self, kind: str, right: Tensor) -> None:
        self.hits[kind] += torch.tensor([right.sum().item(), right.numel()])

    def hits_line(self) -> str:
        """Return all processes' percentages of correct words since the last call, for the log."""
        totals = {kind: [group.total(count) for count in counts.tolist()] for kind, counts in self.hits.items()}
        shares = [f"{kind} {100 * hits / n:.0f}" for kind, (hits, n) in totals.items() if n]
        self.hits.clear()
        return f" correct: {', '.join(shares)}" if shares else ""


def _cross_entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    """Return this process's part of the mean cross-entropy, of scores (tokens, classes) for labels (tokens,)."""
    return group.mean(F.cross_entropy(scores, wanted, reduction="none"))


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> Tensor:
    """Return the id of each word's first token, as the models write it: sign words are in lower case."""
    written = (word.lower() if word in SIGN_WORDS else word for word in words)
    return torch.tensor([tokenizer(word, add_special_tokens=False).input_ids[0] for word in written])


def train_joint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family, out: Path, stage: Stage, steps: int,
    seed: int, prompts: dict[str, str], log: Log,
) -> None:
    """Train projector and language model on packed conversations.

    Args:
        model: the whole model; the tower stays frozen.
        tokenizer: its tokenizer.
        family: its family.
        out: folder of the stage's checkpoint.
        stage: its data, learning rate and labels.
        steps: optimizer steps.
        seed: of the data order.
        prompts: dataset id -> prompt template.
        log: called with one line every 50 steps.
    """
    torch.manual_seed(seed)
    parts = Parts(model, family)
    model.requires_grad_(False)
    trained = {"projector": parts.projector, "decoder": parts.decoder, "head": parts.head}
    for part in trained.values():
        part.requires_grad_(True)
    # Once each: the head of some families is the embedding.
    parameters = list(dict.fromkeys(p for part in trained.values() for p in part.parameters()))
    inside = set(parts.projector.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p not in inside]},
        {"params": [p for p in parameters if p in inside], "scale": family.projector_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = Schedule(stage.learning_rate, steps, 50, stage.horizon, stage.cooldown)
    first = resume(out, trained, optimizer)
    low = Replica({"model": model}, family.dtype)
    low_parts = Parts(cast(PreTrainedModel, low.parts["model"]), family)
    if stage.transcripts:
        low_parts.kinds = {kind: first_tokens(tokenizer, words) for kind, (_, words) in HEADS.items()}
    running: list[float] = []
    for step, packed in enumerate(batches(family, tokenizer, seed, stage, first, steps, prompts), first):
        schedule.apply(optimizer, step)
        loss = low_parts.loss(packed)
        update(loss, parameters, optimizer, low)
        running.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = group.total(sum(running)) / len(running)
            log(f"{stage.name} step {step + 1}/{steps} loss {mean:.3f}{low_parts.hits_line()}")
            running = []
            if (step + 1) % 250 == 0 or step + 1 == steps:
                save(out, trained, optimizer, step + 1)
