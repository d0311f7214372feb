"""The contracts of post-hoc methods that read several Full FT runs, or data beside the target's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


class SeedMerge(Method):
    """A post-hoc method that merges Full FT runs which differ in the seed alone; the parameter `members` counts them.

    The cell with seed s is made from the n = `members` seeds s n to s n + n - 1, so that two seeds of a method share no
    training, and a spread over seeds is one of whole merges.
    """

    posthoc = True

    @abstractmethod
    def combine(self, tuned: Sequence[dict[str, Tensor]], pretrained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the weights of the runs into the method's weights.

        Args:
            tuned: of each run, its trained tensors by name, full shapes.
            pretrained: w* for the same names.

        Returns:
            New float32 tensors for the same names; the arguments are not changed.
        """


class ContrastMethod(Method):
    """A post-hoc method that weighs what the target needs against what the base model knows.

    `finish` gets a `benchmark.training.contrast.Contrast`: the calibration data of other post-hoc methods, and as many
    samples of generic data, which show no source set (`generic`).

    Attributes:
        measures_on: see `methods.importance`.
        single_samples: batches hold one sample each, because `finish` needs gradients of single samples.
    """

    posthoc = True
    measures_on: ClassVar[Literal["generic"]] = "generic"
    single_samples: ClassVar[bool] = False


def check_members(members: int) -> None:
    """Check the number of merged runs.

    Raises:
        ValueError: it is below 2.
    """
    if members < 2:
        raise ValueError(
            f"members={members}: a merge over seeds needs at least two Full FT runs. Set members=2 or more, or use "
            "wise_ft for one run."
        )
