"""SpiderBench as a library: fine-tuning methods in your own trainer, merges of checkpoints, and results as tables.

    from spiderbench import MethodCallback
    trainer = SFTTrainer(model, args, train_dataset=data, callbacks=[MethodCallback("spider")])
    trainer.train()

| name | what it does |
|---|---|
| `attach` | hooks a training method to an optimizer that you step yourself |
| `MethodCallback` | the same for transformers' Trainer, TRL's SFTTrainer and trainers that inherit from them |
| `merge` | merges checkpoints on files: DARE, WiSE-FT, TIES, LoRA |
| `list_methods` | every method by its id, also those of other installed packages |
| `load_results` | a results folder as data frames |
| `UserError` | the mistakes that these functions report, in one sentence with the fix |

This package only names them. Each is imported when it is first used, so `import spiderbench` needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.core.errors import UserError as UserError
    from benchmark.merging.merge import merge as merge
    from benchmark.results import load as load_results
    from benchmark.training.attach_model import attach_model as attach
    from benchmark.training.callback import MethodCallback as MethodCallback
    from methods.registry import list_methods as list_methods

_NAMES = {
    "MethodCallback": "benchmark.training.callback:MethodCallback",
    "UserError": "benchmark.core.errors:UserError",
    "attach": "benchmark.training.attach_model:attach_model",
    "list_methods": "methods.registry:list_methods",
    "load_results": "benchmark.results:load",
    "merge": "benchmark.merging.merge:merge",
}
__all__ = ["MethodCallback", "UserError", "attach", "list_methods", "load_results", "merge"]


def _foreign_package(others: Iterable[str]) -> str | None:
    """Return a message if another `benchmark` comes first on Python's path, or one of the other packages; else None."""
    root = Path(__file__).resolve().parent.parent
    found = importlib.util.find_spec("benchmark")
    place = Path(found.origin).resolve() if found and found.origin else None
    if place == root / "benchmark" / "__init__.py":
        from benchmark.core.project import foreign_package

        return foreign_package(others)
    return (
        f"`import benchmark` finds {place or 'nothing'}, not SpiderBench's {root / 'benchmark'}. Rename that file or "
        "folder, or start Python where it is not first on the path."
    )


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'spiderbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    # Many projects have an eval.py, and training needs none of ours.
    if message := _foreign_package(("methods", "eval") if name == "load_results" else ("methods",)):
        raise ImportError(message)
    module, _, attribute = _NAMES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return __all__
