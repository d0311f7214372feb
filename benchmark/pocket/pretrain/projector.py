"""First weights of a projector, from the statistics of the tower's features.

The spectrum of the features is steep: the largest variance is thousands of times the smallest. Icons and words differ
in directions of small variance, so training from random weights learns only colours and places.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from benchmark.pocket.pretrain import group
from benchmark.pocket.pretrain.family import TokenGrid
from benchmark.pocket.pretrain.language import Parts, first_tokens
from benchmark.pocket.pretrain.state import Schedule, resume, save, update
from benchmark.pocket.pretrain.tower import HEADS, PRETRAINING, pictures, shared_pictures
from benchmark.pocket.world.icons import PLACES
from benchmark.pocket.world.scene import CELL, SIZE, Cover, Diagram, Scene

WORDS = {word: index for index, word in enumerate(dict.fromkeys(w for _, words in HEADS.values() for w in words))}
Box = tuple[float, float, float, float, tuple[str, ...]]


def boxes(picture: Scene | Cover | Diagram) -> list[Box]:
    """Return a box (left, top, right, bottom, words) for each part of a picture, in shares of its width and height."""
    if isinstance(picture, Cover):
        lines = (
            (0, 18, picture.title[0]),
            (18, 36, picture.title[1]),
            (40, 68, picture.genre),
            (69, 83, picture.author[0]),
            (83, 96, picture.author[1]),
            (97, 112, picture.year),
        )
        return [(0.0, top / SIZE, 1.0, bottom / SIZE, (word,)) for top, bottom, word in lines]
    if isinstance(picture, Diagram):
        step, left, top, height = picture.layout()
        return [
            (
                (left + s.cell[1] * step) / SIZE, (top + s.cell[0] * step) / height,
                (left + (s.cell[1] + 1) * step) / SIZE, (top + (s.cell[0] + 1) * step) / height,
                (s.kind, s.colour),
            )
            for s in picture.shapes
        ]
    share = CELL / SIZE
    result: list[Box] = [(0.0, 0.0, 1.0, 1.0, (picture.place,))]
    for thing in picture.things:
        row, column = thing.cell
        words = (thing.icon, thing.colour)
        result.append((column * share, row * share, (column + 1) * share, (row + 1) * share, words))
    for sign in picture.signs:
        result.append((0.0, sign.row * share, 1.0, (sign.row + 1) * share, (sign.word, sign.colour)))
    return result


def words_per_token(picture: Scene | Cover | Diagram, grid: TokenGrid) -> Tensor:
    """Return the share of each token's area that shows each word, (tokens, words), in the order of the tokens.

    Args:
        picture: what is shown.
        grid: the picture's tokens.
    """
    rows, columns, across, down, by_column = grid
    shown = torch.zeros(rows * columns, len(WORDS), dtype=torch.float64)
    for left, top, right, bottom, words in boxes(picture):
        for column in range(columns):
            for row in range(rows):
                width = min(right, (column + 1) * across) - max(left, column * across)
                height = min(bottom, (row + 1) * down) - max(top, row * down)
                if width > 0 and height > 0:
                    token = column * rows + row if by_column else row * columns + column
                    for word in words:
                        shown[token, WORDS[word]] += width * height / (across * down)
    return shown


@torch.no_grad()
def condition(parts: Parts, seed: int, count: int = 2048) -> None:
    """Initialise the projector's first layer so that it passes on what the tower knows.

    Where the projector has as many outputs as inputs (LLaVA), the layer whitens its inputs and rotates them randomly.
    Where it has fewer (VILA and Qwen join four patches), it projects its inputs onto their canonical directions with
    the words that a token shows, the strongest first. Both start at half scale, where GELU is nearly linear; the last
    layer starts orthogonal, and passes on the first of these directions if there are more than it has outputs.

    Args:
        parts: of any family.
        seed: of the pictures and the rotation.
        count: number of pictures to measure.
    """
    linears = [module for module in parts.projector.modules() if isinstance(module, nn.Linear)]
    first, last = linears[0], linears[-1]
    seen: list[Tensor] = []
    shown: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2).double()))
    stream = pictures(f"condition/{seed}", PRETRAINING.__contains__)
    fewer = last.out_features < first.in_features
    for _ in range(count // 128):
        drawn = list(islice(stream, 128))
        images = [picture.draw(rng) for picture, rng in drawn]
        parts.image_tokens(parts.family.pixels(images), torch.float32)
        if fewer:
            shown += [
                words_per_token(picture, parts.family.grid(image.size))
                for (picture, _), image in zip(drawn, images, strict=True)
            ]
    hook.remove()
    inputs = torch.cat(seen)
    mean = inputs.mean(0)
    whitening = _inverse_root(torch.cov(inputs.T))
    generator = torch.Generator().manual_seed(seed)
    if fewer:
        words = torch.cat(shown)
        words = words - words.mean(0)
        across = (inputs - mean).T @ words / len(words)
        rows = torch.linalg.svd(whitening @ across @ _inverse_root(torch.cov(words.T))).U[:, : first.out_features].T
    else:
        rotation = torch.randn(len(mean), len(mean), dtype=torch.float64, generator=generator)
        rows = torch.linalg.qr(rotation).Q
    weight = 0.5 * (rows @ whitening)
    first.weight.copy_(weight)
    first.bias.copy_(-weight @ mean)
    nn.init.zeros_(last.weight)
    nn.init.orthogonal_(last.weight[:, : last.out_features], gain=2.0, generator=generator)
    nn.init.zeros_(last.bias)


def train_names(
    parts: Parts,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    steps: int,
    seed: int,
    log: Callable[[str], None],
    batch: int = 96,
    learning_rate: float = 3e-3,
) -> None:
    """Train the projector alone, so that each image token points to the embeddings of the words that it shows.

    VILA and Qwen need this because a token joins four patches and thus parts of several things. No language model runs:
    the cosine between a projected token and the frozen word embeddings, times 20, is the logit of a softmax over all
    words.

    Args:
        parts: embeddings come from the language stage.
        tokenizer: gives each word's token.
        out: folder of the stage's checkpoint.
        steps: optimizer steps.
        seed: of the pictures.
        log: called with one line every 50 steps.
        batch: pictures per step.
        learning_rate: peak.
    """
    names = F.normalize(parts.decoder.embed_tokens.weight[first_tokens(tokenizer, WORDS)].detach(), dim=-1)
    parameters = list(parts.projector.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = Schedule(learning_rate, steps, warmup=50)
    first = resume(out, {"projector": parts.projector}, optimizer)
    places = torch.tensor([WORDS[place] for place in PLACES])
    for step in range(first, steps):
        schedule.apply(optimizer, step)
        drawn = list(shared_pictures(f"names/{seed}/{step}", batch))
        images = [picture.draw(rng) for picture, rng in drawn]
        tokens = parts.image_tokens(parts.family.pixels(images), torch.float32).flatten(0, -2)
        grids = [parts.family.grid(image.size) for image in images]
        shown = torch.cat([words_per_token(picture, grid) for (picture, _), grid in zip(drawn, grids, strict=True)])
        shown = shown.float()
        shown[..., places] *= 0.2  # the place fills the picture, so a few tokens are enough for it
        wanted = shown / shown.sum(-1, keepdim=True).clamp(min=1e-6)
        logits = 20 * F.normalize(tokens, dim=-1) @ names.T
        loss = group.mean(-(wanted * logits.log_softmax(-1)).sum(-1))
        update(loss, parameters, optimizer)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log(f"names step {step + 1}/{steps} loss {group.total(loss.item()):.3f}")
            save(out, {"projector": parts.projector}, optimizer, step + 1)


def _inverse_root(covariance: Tensor) -> Tensor:
    """Return covariance^(-1/2) with a small ridge, (n, n)."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / (values + 1e-4 * values.mean()).sqrt() @ vectors.T
