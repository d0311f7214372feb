"""How users call the library; mypy checks it (pyproject.toml), and says so if a wrong call were accepted."""

from __future__ import annotations

import torch

from spiderbench import MethodCallback, UserError, attach, list_methods, load_results, merge


def use(model: torch.nn.Module) -> list[str]:
    """Call every public function; nothing runs this."""
    optimizer = torch.optim.AdamW(model.parameters())
    attach("spider", optimizer, model, pretrained="folder", momentum=0.9).diagnostics()["rms_delta"].is_integer()
    MethodCallback("spider", pretrained={"w": torch.zeros(1)}).name.upper()
    merge("dare", "base", "tuned", "out", {"keep": 0.1}).is_dir()
    load_results("folder").cells.head()
    try:
        attach(3, optimizer, model)  # type: ignore[arg-type]
    except UserError as error:
        raise SystemExit(str(error)) from error
    return [name for name, entry in list_methods().items() if entry.kind == "training"]
