"""SampleWeights: how many samples each sample counts for, in the sums and means of a pass.

Axes: `n` counts the samples of a data set; `batch` is last.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.errors import ArgumentTypeError, DataError, ShapeError, mismatch


class SampleWeights(NamedTuple):
    """The weights of some samples of a data set. A sample of weight 3 counts as three equal samples.

    The mean over a batch of a value times its relative weight has as expectation the mean over the repeated samples. A
    mean divided by the sum of the batch's own weights would not: samples would weigh more in batches of light ones.

    Attributes:
        counts: The weights, >= 0.
        relative: `counts` divided by their mean over the data set.

    >>> weights = SampleWeights.of(torch.tensor([3.0, 1.0, 2.0]), 3)
    >>> weights.relative, weights.at(torch.tensor([0, 1])).relative
    (tensor([1.5000, 0.5000, 1.0000], dtype=torch.float64), tensor([1.5000, 0.5000], dtype=torch.float64))
    """

    counts: Float[Tensor, " batch"]
    relative: Float[Tensor, " batch"]

    @classmethod
    def of(cls, given: object, n: int, *, name: str = "sample_weight", values: bool = True) -> "SampleWeights":
        """Check the weights of a whole data set, or of a batch that is one.

        Args:
            given: A tensor or array of `n` numbers.
            n: Number of samples.
            name: The name of the weights in error messages.
            values: Check the values too, which on a GPU waits for the device.

        Raises:
            ArgumentTypeError: They are no tensor or array of numbers.
            ShapeError: They are not `(n,)`.
            DataError: One is negative, NaN or infinite, or all are zero.

        >>> SampleWeights.of(torch.tensor([1.0, -1.0]), 2)
        Traceback (most recent call last):
        ...
        hmoevae.errors.DataError: sample_weight: expected finite numbers >= 0, not all zero, got values from -1.0 to 1.0
        """
        if not isinstance(given, Tensor | np.ndarray) or isinstance(given, np.ma.MaskedArray):
            raise ArgumentTypeError(mismatch(name, "a tensor or array of numbers", type(given).__name__))
        if given.is_complex() if isinstance(given, Tensor) else given.dtype.kind not in "biuf":
            raise ArgumentTypeError(mismatch(name, "a tensor or array of numbers", given.dtype))
        if tuple(given.shape) != (n,):
            raise ShapeError(mismatch(name, f"one per sample, ({n},)", tuple(given.shape)))
        tensor = given.detach() if isinstance(given, Tensor) else torch.from_numpy(np.array(given, np.float64))
        counts = tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)  # MPS has no float64
        if values:
            low, high = (end.item() for end in counts.aminmax())  # NaN in both, where there is one
            if not 0 <= low <= high < torch.inf or high == 0:
                raise DataError(mismatch(name, "finite numbers >= 0, not all zero", f"values from {low} to {high}"))
        return cls(counts, counts / counts.mean())

    def at(self, index: Int[Tensor, " batch"]) -> "SampleWeights":
        """Those of some samples of the data set."""
        return SampleWeights(*(each[index] for each in self))

    def like(self, x: Tensor) -> "SampleWeights":
        """The weights with the device and type of a tensor."""
        return SampleWeights(*(each.to(x) for each in self))


def weighted_mean(values: Float[Tensor, " batch"], weights: SampleWeights | None) -> Float[Tensor, ""]:
    """The mean over the batch of the values times the relative weights.

    >>> weighted_mean(torch.tensor([1.0, 2.0]), SampleWeights.of(torch.tensor([1.0, 3.0]), 2).like(torch.tensor(0.0)))
    tensor(1.7500)
    """
    return values.mean() if weights is None else (values * weights.relative).mean()
