"""Load a base model for training or answering. Any library's error becomes one message about the checkpoint."""

from __future__ import annotations

from dataclasses import replace

from benchmark.core.errors import UserError, shorten
from benchmark.models import LoadedModel
from benchmark.spec import CellSpec, ModelSpec, answering_dtype


def load_model(model: ModelSpec, dtype: str, device: str, then: str | None = None) -> LoadedModel:
    """Return a base model on its device.

    Args:
        model: the model.
        dtype: dtype in which its weights are read.
        device: cpu or cuda.
        then: dtype to which they are then cast; None for no cast.

    Raises:
        UserError: the checkpoint is missing, truncated or does not match.
    """
    import torch

    from benchmark import models
    from benchmark.models import places

    path = places.checkpoint(model).path
    try:
        loaded = models.load(replace(model, checkpoint=str(path)), getattr(torch, dtype))
    except UserError:
        raise
    except Exception as error:  # libraries that read configurations and tokenizers raise all kinds of errors
        raise UserError(
            f"The checkpoint {path} does not load: {type(error).__name__}: {shorten(str(error), 300)}. Fetch it again, "
            "or correct model.checkpoint."
        ) from error
    loaded.model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's `to` without its types
    if then not in (None, dtype):
        # Only weights: the tables of rotary embeddings stay in float32, as from_pretrained leaves them.
        for parameter in loaded.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, then))
    return loaded


def how_to_load(cell: CellSpec, answering: bool) -> tuple[ModelSpec, str, str, str]:
    """Return the arguments of load_model for a cell's training, or for its answers.

    A tuned model was saved in the dtype of its training. All its weights, including the frozen ones, are therefore read
    in that dtype and then cast to the dtype of the answers. An untuned model is read in the latter. LLaVA's own scripts
    do the same.
    """
    last = answering_dtype(cell) if answering else cell.dtype
    return cell.model, last if answering and cell.train is None else cell.dtype, cell.device, last
