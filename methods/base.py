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
    (weights updated, no forward pass has seen them). Under ZeRO one step may take several calls, each with
    different tensors. A method therefore keeps its state by tensor name and does not count calls.

    A shard is this process's part of one tensor. `name`, `shape` and `numel` describe the whole tensor; `weight` and
    `grad` are 1-D live views of the part, `pretrained` holds its base values, and `offset` is the index of its first
    element in the flattened tensor. Any part may be empty, so compute a number about a whole tensor with `shards.sums`.

    A post-hoc method (`posthoc = True`) has no hooks: `finish` turns the weights of a finished Full FT run
    into its own.

    Attributes:
        Params: frozen dataclass of the hyper-parameters; raises ValueError for values out of range.
        posthoc: the method needs a finished Full FT run instead of a training run.
        stateless: the object's attributes change, but no step depends on what earlier steps left in them. Otherwise
            one class must define both `state_dict` and `load_state_dict`, which save and restore what changes.
        uses_pretrained: hooks read `shard.pretrained`, so w* stays on the weights' device.
        shards: every trainable tensor, for `diagnostics`; `attach` sets it.
        extra_step: runs one more optimizer step on the current gradients, without hooks. `attach` sets it before
            `start`; it is None where the engine owns the step (ZeRO).
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
        """Number of training samples that `finish` needs as calibration data: the parameter `samples`, or 0."""
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
        """Return everything that an exact resume needs: a flat dict of this rank's tensors and of JSON values.

        Leave out what `start` computes from the base weights and the seed alone. Unless the class is `stateless`, a
        save fails if an attribute has changed since `start` that the class defining this function never mentions
        (`methods.state`).
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called after `start`. `state_dict` must then return the same again.

        Raises:
            UserError: the state belongs to another run.
        """

    def diagnostics(self) -> dict[str, float]:
        """Return numbers about the last step for train.jsonl. All ranks call it at the same time."""
        return {}
