"""Which decoder layer a tensor belongs to, read from its name."""

from __future__ import annotations

import re

# At least one module must come between index and leaf, so VILA's `mm_projector.layers.2.weight` is in no layer.
_LAYER = re.compile(r"(?P<layer>(?:.*\.)?layers\.\d+)\.(?P<module>.+)\.(?:weight|bias)")


def split_layer(name: str) -> tuple[str, str] | None:
    """Split a tensor name into its layer and the module inside it.

    Args:
        name: e.g. "model.language_model.layers.6.self_attn.q_proj.weight".

    Returns:
        e.g. ("model.language_model.layers.6", "self_attn.q_proj"), or None for a tensor outside the
        transformer layers (the projector).
    """
    match = _LAYER.fullmatch(name)
    return (match["layer"], match["module"]) if match else None
