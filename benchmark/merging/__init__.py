"""Merges of checkpoints on files: DARE, WiSE-FT, TIES and LoRA, tensor by tensor."""

from __future__ import annotations

# Post-hoc methods of `methods/` that treat each tensor by itself and need no data. A test holds that tensor by tensor
# gives the same weights as all at once.
POSTHOC = ("dare", "dare_drop_only", "dare_magnitude", "wise_ft", "spider_posthoc")
MERGES = (*POSTHOC, "ties", "lora")
