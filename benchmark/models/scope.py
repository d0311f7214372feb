"""Which weights train, decided by name alone: train.scope, train.last_layers and train.projector."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from benchmark.core.errors import UserError, did_you_mean

Projector = Literal["full", "frozen", "lora"]

ALL = r""
ATTENTION = r"attn\w*\.(q|k|v|o|out|qkv)_proj\."
GATE_UP = r"mlp\.(gate|up|gate_up)_proj\."
MLP = r"mlp\."
# Scope -> (only the last L blocks, pattern of the block's parameters that train; None: no block trains).
SCOPES: dict[str, tuple[bool, str | None]] = {
    "last_layers": (True, ALL),
    "all": (False, ALL),
    "llm": (False, ALL),
    "projector": (False, None),
    "attention": (True, ATTENTION),
    "gate_up": (True, GATE_UP),
    "mlp": (True, MLP),
}
PATTERN = "re:"  # train.scope=re:PATTERN


def fault_of(scope: str, projector: Projector = "full") -> str | None:
    """Return why train.scope cannot be used, or None if it can."""
    if scope.startswith(PATTERN):
        try:
            re.compile(scope.removeprefix(PATTERN))
        except re.error as error:
            return f"train.scope={scope}: not a regular expression: {error}."
        return None
    if scope not in SCOPES:
        guess = did_you_mean(scope, SCOPES)
        return f"train.scope={scope}: unknown value.{guess} Use a name, or re:PATTERN for names such as " \
            "layers.3.self_attn.q_proj.weight."
    if scope == "projector" and projector == "frozen":
        return "train.scope=projector with train.projector=frozen trains nothing. Change one of them."
    if scope == "llm" and projector == "lora":
        return "train.scope=llm freezes the projector, so train.projector=lora has no effect. Use train.scope=all."
    return None


def projector_trains(scope: str, projector: Projector = "full") -> bool:
    """Return whether the projector trains; scope "llm" leaves it frozen."""
    return scope != "llm" and projector != "frozen"


def block_names(names: Sequence[Sequence[str]], scope: str, last_layers: int) -> list[list[str]]:
    """Return the parameters of each language-model block that train.

    Args:
        names: for each block in forward order, the names of its parameters, e.g. "self_attn.q_proj.weight".
        scope: a name of SCOPES, or "re:PATTERN". PATTERN is searched in "layers.N.NAME" of every block.
        last_layers: L, the number of blocks at the end of the model that SCOPES with "only the last L" choose from.

    Returns:
        For each block, its names that train, in their order.

    Raises:
        UserError: unknown scope, L outside 1 .. number of blocks, or nothing matches.
    """
    if fault := fault_of(scope):
        raise UserError(fault)
    if scope.startswith(PATTERN):
        last, pattern = False, scope.removeprefix(PATTERN)
    else:
        last, parts = SCOPES[scope]
        if parts is None:
            return [[] for _ in names]
        pattern = parts
    count = len(names)
    if last and not 1 <= last_layers <= count:
        raise UserError(f"train.last_layers={last_layers}, but the model has {count} blocks. Choose 1 to {count}.")
    first = count - last_layers if last else 0
    chosen = [
        [name for name in block if number >= first and re.search(pattern, f"layers.{number}.{name}")]
        for number, block in enumerate(names)
    ]
    if not any(chosen):
        kinds = dict.fromkeys(f"layers.{count - 1}.{name}" for name in names[-1])
        raise UserError(f"train.scope={scope} matches no parameter of a block. They have names such as: "
                        f"{', '.join(kinds)}.")
    return chosen
