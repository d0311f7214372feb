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
    (d(xi^T f) / dz_i)^2, where z is the layer's output, f the logits that predict the answer and xi random signs.

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
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0].detach(), output

        return keep

    training, needed = model.training, {name: p.requires_grad for name, p in model.named_parameters()}
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    model.eval().requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_()  # so that outputs have a gradient
    try:
        for number, batch in enumerate(batches):
            seen.clear()
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            with torch.enable_grad():
                logits = model(**inputs).logits[:, :-1][batch["labels"][:, 1:] != IGNORE]
            source = generator(seed, f"model_dowser/{number}")
            outputs = {name: output for name, (_, output) in seen.items()}
            squares = {name: torch.zeros(output.shape, device=output.device) for name, output in outputs.items()}
            for probe in range(probes):
                signs = torch.randint(0, 2, logits.shape, generator=source).mul_(2).sub_(1).to(logits)
                parts = torch.autograd.grad(
                    (signs * logits).sum(), list(outputs.values()), retain_graph=probe < probes - 1, allow_unused=True
                )
                for name, part in zip(outputs, parts, strict=True):
                    if part is not None:
                        squares[name] += part.float().square() / probes
            found = {}
            for name, square in squares.items():
                slopes = square.sqrt().flatten(0, -2)
                found[name] = slopes.T @ seen[name][0].float().abs().flatten(0, -2) / len(slopes)
            yield found
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needed[name])
        model.train(training)
