"""Calibration data of two kinds: samples of the target, and samples that show no source set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from benchmark.training.calibration import Calibration


class Contrast(Calibration):
    """Calibration data of the target, with the same of generic data beside them.

    Args:
        model, batches, names: see `Calibration`.
        generic: the generic data; None in these themselves.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], names: Iterable[str],
        generic: Contrast | None = None,
    ) -> None:
        names = list(names)
        super().__init__(model, batches, names)
        self.generic = generic
        self._each = [Calibration(model, [batch], names) for batch in batches]

    def sample_gradients(self, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield `gradient` of one batch after another: of single samples, if batches hold one each."""
        for one in self._each:
            yield one.gradient(weights)
