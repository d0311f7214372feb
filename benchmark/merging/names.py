"""How transformers names the stored tensors of a checkpoint once they are loaded; released files use older names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmark.models.checkpoint_files import PARTS

VILA_TOWER = ("vision_tower.vision_model.", "vision_tower.")  # in public files, which an older transformers wrote


def loaded_names(folder: Path, stored: Iterable[str]) -> dict[str, str]:
    """Return stored name -> name in the model, by transformers' own rules of renaming.

    Training, PEFT and the benchmark's cells see the model's names: a LLaVA file's language_model.model.norm.weight is
    model.language_model.norm.weight there. So checkpoints fit together however each was saved.

    Args:
        folder: the checkpoint.
        stored: names in its files; in VILA's layout with the part before them, as in "llm.model.norm.weight".

    Returns:
        Unchanged names where transformers has no class for the architecture.
    """
    names = list(stored)
    if (folder / PARTS[0]).is_dir():
        return {name: name.replace(*VILA_TOWER) for name in names}
    rules = _rules(folder)
    if rules is None:
        return {name: name for name in names}
    from transformers.core_model_loading import rename_source_key

    return {name: rename_source_key(name, rules, [])[0] for name in names}


def _rules(folder: Path) -> list | None:
    """Return transformers' renamings for a checkpoint, or None if it has no class for it."""
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        cls = getattr(transformers, (getattr(config, "architectures", None) or [""])[0])
        with torch.device("meta"):  # shapes only: the rules depend on the classes of the sub-models
            model = cls(config)
    except Exception:  # any configuration may come here, also one that only its authors' code can build
        return None
    return [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
