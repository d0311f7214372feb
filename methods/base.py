"""The contract of a fine-tuning method: hooks around the optimizer step, or one transform at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration
    from methods.shards import Shards


@dataclass(frozen=True)
class NoParams:
    """A method without hyper-parameters."""


class Method:
    """What every method inherits; a method overrides only what it needs.

    In training, `benchmark.training.attach.attach` calls `start` once and then, around every optimizer step,
    `before_step` (gradients averaged, unscaled and clipped; weights not yet updated) and `after_step`
    (weights updated, no forward pass has seen them). A step may come in several calls, each with other
    tensors (ZeRO), so a method keeps its state by tensor name and does not count calls.

    A shard is this process's part of one tensor: `name`, `shape` and `numel` of the whole tensor, the 1-D live
    views `weight` and `grad`, the part's base values `pretrained`, and `offset`, the index of its first element
    within the flattened tensor. Any part may be empty, so a number that belongs to a whole tensor must come from
    `shards.sums`.

    A post-hoc method (`posthoc = True`) has no hooks: `finish` turns the weights of a finished Full FT run
    into its own.

    Attributes:
        Params: frozen dataclass of the hyper-parameters; raises ValueError for values out of range.
        posthoc: the method needs a finished Full FT run instead of a training run.
        stateless: no step depends on what earlier steps left in the object's attributes, although they change. Else
            what changes must be saved: `state_dict` and `load_state_dict`, both in one class.
        uses_pretrained: hooks read `shard.pretrained`, so w* is kept on the weights' device.
        shards: every trainable tensor, set by `attach`, for `diagnostics`.
        extra_step: steps the optimizer once more on the gradients as they are, without hooks; set by `attach`
            before `start`. None where the step belongs to the engine (ZeRO).
    """

    Params: ClassVar[type] = NoParams
    posthoc: ClassVar[bool] = False
    stateless: ClassVar[bool] = False
    uses_pretrained: ClassVar[bool] = True
    shards: Shards
    extra_step: Callable[[], None] | None = None

    def __init__(self, params: Any, seed: int) -> None:
        self.params = params
        self.seed = seed

    @property
    def calibration_samples(self) -> int:
        """How many training samples `finish` wants as calibration data: the parameter `samples`, 0 without it."""
        return getattr(self.params, "samples", 0)

    def refuses(self, engine: str) -> str | None:
        """Return why this method cannot train on an engine, and what to do instead; None if it can.

        Args:
            engine: a name in conf/engine, for example "zero2"; "single" is never refused.
        """
        return None

    def start(self, shards: Shards) -> None:
        """Prepare the state; called once with every trainable tensor, before the first step or a resume."""

    def before_step(self, shards: Shards) -> None:
        """Act on final gradients, in place, before the optimizer reads them."""

    def after_step(self, shards: Shards) -> None:
        """Act on updated weights, in place."""

    def finish(
        self, finetuned: dict[str, Tensor], pretrained: dict[str, Tensor], calibration: Calibration | None
    ) -> dict[str, Tensor]:
        """Turn Full FT weights into the method's weights (post-hoc methods only).

        Args:
            finetuned: trained tensors by name, full shapes.
            pretrained: w* for the same names.
            calibration: inputs of the linear layers and gradients of the loss, on `calibration_samples` of the
                target's training samples; None if that is 0.

        Returns:
            New float32 tensors for the same names; the arguments are not changed.
        """
        raise TypeError(f"{type(self).__name__} acts during training and has no post-hoc transform.")

    def state_dict(self) -> dict[str, Any]:
        """Return all that an exact resume needs: a flat dict of tensors (this rank's) and JSON values.

        What `start` computes from the base weights and the seed alone is not needed. Saving is refused if attributes
        changed since `start` that no such function knows of (`methods.state`), unless the class is `stateless`.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s result; called after `start`. `state_dict` must then return just that.

        Raises:
            UserError: the state belongs to another run.
        """

    def diagnostics(self) -> dict[str, float]:
        """Return numbers about the last step for train.jsonl; every rank calls it together."""
        return {}
