"""Merges of checkpoints on files, tensor by tensor: post-hoc methods, soups, TIES and LoRA."""

from __future__ import annotations

# Post-hoc methods of `methods/` that need one tuned model and no data. A test holds that tensor by tensor gives the
# same weights as all at once.
POSTHOC = ("dare", "dare_drop_only", "dare_magnitude", "wise_ft", "spider_posthoc", "lines", "intruder")
SEVERAL = ("soup", "ties")  # merge two tuned models or more
MERGES = (*POSTHOC, *SEVERAL, "lora")
