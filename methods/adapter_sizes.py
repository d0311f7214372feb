"""How many elements an adapter trains, by arithmetic: a plan needs them without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Params = Mapping[str, Any]
Shape = tuple[int, ...]  # of a weight: (out, in), or (size,) of a norm's


def _lora(params: Params, shape: Shape) -> int:
    size = params["r"] * sum(shape)
    if params.get("init_lora_weights") == "mica":
        size = params["r"] * shape[1]  # B is frozen
    return size + (shape[0] if params.get("use_dora") else 0)


def _osf(params: Params, shape: Shape) -> int:
    kept = params["effective_rank"]
    low = min(shape) - (int(min(shape) * kept) if kept <= 1 else int(kept))
    return low * (sum(shape) + 1)


def _boft(params: Params, shape: Shape) -> int:
    return params["boft_n_butterfly_factor"] * shape[1] * params["boft_block_size"] + shape[0]


# Class -> elements in a layer. A function of (parameters, name of the layer below its block, shape of its weight).
SIZES: dict[str, Callable[[Params, str, Shape], int]] = {
    "methods.peft:Lora": lambda params, name, shape: _lora(params, shape),
    "methods.peft:Corda": lambda params, name, shape: _lora(params, shape),
    "methods.subspaces:MiLora": lambda params, name, shape: _lora(params, shape),
    "methods.subspaces:LoraNull": lambda params, name, shape: _lora(params, shape),
    "methods.subspaces:OpLora": lambda params, name, shape: _lora(params, shape),
    "methods.lorasculpt:LoraSculpt": lambda params, name, shape: _lora(params, shape),
    "methods.peft:Vera": lambda params, name, shape: params["r"] + shape[0],
    "methods.peft:Oft": lambda params, name, shape: shape[1] * (params["oft_block_size"] - 1) // 2,
    "methods.peft:Boft": lambda params, name, shape: _boft(params, shape),
    "methods.peft:Osf": lambda params, name, shape: _osf(params, shape),
    "methods.peft:Ia3": lambda params, name, shape: shape[1 if re.fullmatch(params["feedforward"], name) else 0],
    "methods.peft:Shira": lambda params, name, shape: params["r"] * sum(shape),
    "methods.peft:Supertuning": lambda params, name, shape: int(shape[0] * shape[1] * (1 - params["sparsity"])),
    "methods.houlsby:Houlsby": lambda params, name, shape: 2 * params["size"] * shape[0] + params["size"] + shape[0],
    "methods.prefix:Prefix": lambda params, name, shape: params["tokens"] * shape[0],
    "methods.peft:LnTuning": lambda params, name, shape: shape[0],
}
ONCE: dict[str, Callable[[Params, int], int]] = {  # not in blocks: a function of (parameters, hidden size)
    "methods.prompt_tuning:PromptTuning": lambda params, hidden: params["tokens"] * hidden,
}
NORMS = ("methods.peft:LnTuning",)


def elements(cls: str, params: Params, blocks: Sequence[Mapping[str, Shape]], hidden: int) -> int:
    """Return the number of elements that an adapter trains.

    Args:
        cls: "module:Class" of the method.
        params: its parameters by name.
        blocks: for each decoder block, name of a layer below it -> shape of its weight.
        hidden: width of the decoder.
    """
    if cls in ONCE:
        return ONCE[cls](params, hidden)
    return sum(_in_block(cls, params, shapes) for shapes in blocks)


def _in_block(cls: str, params: Params, shapes: Mapping[str, Shape]) -> int:
    return sum(
        SIZES[cls](params, name, shape) for name, shape in shapes.items()
        if len(shape) == (1 if cls in NORMS else 2) and re.fullmatch(params["targets"], name)
    )
