"""Merges of checkpoints on files, tensor by tensor: post-hoc methods, soups, TIES and LoRA."""

from __future__ import annotations

# Post-hoc methods of `methods/` that need one tuned model and no data. A test holds that tensor by tensor gives the
# same weights as all at once.
POSTHOC = ("dare", "dare_drop_only", "dare_magnitude", "wise_ft", "spider_posthoc", "lines", "intruder")
# Those that also need the model, and training samples of a dataset.
CALIBRATED = (
    "tailor", "tailor_official", "tailor_no_compensation", "tailor_change_sensitivity", "tailor_keep_projector",
    "grafting_mask", "fisher", "wise_ft_tensors",
)
SEVERAL = ("soup", "ties")  # merge two tuned models or more
MERGES = (*POSTHOC, *CALIBRATED, *SEVERAL, "lora")
