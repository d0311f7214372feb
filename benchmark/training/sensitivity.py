"""Sensitivities of the weights of linear layers, measured by random probes of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from benchmark.models.prompt import IGNORE
from methods.ops import generator


def sensitivities(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str], probes: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield, for each batch of one sample, ||J_i|| |h_j| of every weight of a linear layer, averaged over its tokens.

    ||J_i||^2 is Hutchinson's estimate of the squared norm of df / dz_i at a token: the mean over probes of
    (d(xi^T f) / dz_i)^2, where z is the layer's output, f the logits that predict the answer and xi random signs. If a
    layer runs several times in a forward pass, as for several images, the tokens of all runs count: a weight moves the
    output through each of them.

    Args:
        model: with base weights; unchanged afterwards.
        batches: keyword arguments of forward passes, with labels that are -100 where nothing is supervised.
        names: trained tensors; those that are not weights of a linear layer are ignored.
        probes: random signs per sample.
        seed: of the signs.

    Yields:
        Name -> float32 (d_out, d_in).
    """
    layers = {f"{path}.weight": module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = {name: layers[name] for name in names if name in layers}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # inputs and outputs of a layer, run by run

    def hook(name: str) -> Callable:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.setdefault(name, []).append((inputs[0].detach(), output))

        return keep

    training, needed = model.training, {name: p.requires_grad for name, p in model.named_parameters()}
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    model.eval().requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_()  # so that outputs have a gradient
    try:
        for number, batch in enumerate(batches):
            seen.clear()
            shown = {key: value for key, value in batch.items() if key != "labels"}
            with torch.enable_grad():
                logits = model(**shown).logits[:, :-1][batch["labels"][:, 1:] != IGNORE]
            source = generator(seed, f"model_dowser/{number}")
            outputs = [output for runs in seen.values() for _, output in runs]
            squares = [torch.zeros(output.shape, device=output.device) for output in outputs]
            for probe in range(probes):
                signs = torch.randint(0, 2, logits.shape, generator=source).mul_(2).sub_(1).to(logits)
                parts = torch.autograd.grad(
                    (signs * logits).sum(), outputs, retain_graph=probe < probes - 1, allow_unused=True
                )
                for square, part in zip(squares, parts, strict=True):
                    if part is not None:
                        square += part.float().square() / probes
            left, found = iter(squares), {}
            for name, runs in seen.items():
                inputs = torch.cat([entered.float().abs().flatten(0, -2) for entered, _ in runs])
                slopes = torch.cat([next(left).sqrt().flatten(0, -2) for _ in runs])
                found[name] = slopes.T @ inputs / len(slopes)
            yield found
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needed[name])
        model.train(training)
