"""The contract of a training method that measures the importance of every weight at w*, before the first step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


class ImportanceMethod(Method):
    """What every such method inherits. `benchmark.training.importance` calls `measure` before `start`.

    Attributes:
        measures_on: the samples that it measures on: data that show no source set. `calibration_samples` is their
            number.
        measures: what `measure` gets of each sample: gradients of the loss, or sensitivities of the output
            (`benchmark.training.sensitivity`), which take the parameter `probes`.
    """

    measures_on: ClassVar[Literal["generic"]] = "generic"
    measures: ClassVar[Literal["gradients", "sensitivities"]] = "gradients"

    @abstractmethod
    def measure(self, gradients: Iterable[dict[str, Tensor]]) -> None:
        """Measure the importances; every process gets the same numbers.

        Args:
            gradients: of the mean loss of the answer's tokens of one sample at w*, for one sample after the other: name
                of every trained tensor -> float32 tensor, whole. Or what `measures` says.
        """
